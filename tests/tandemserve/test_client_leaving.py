"""Both clients: leaving, cancelling and running out of time reach the server."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tandemserve import (
    ClientClosed,
    DeadlineExceeded,
    Delta,
    Event,
    ProtocolViolation,
    QueueFull,
    RequestCancelled,
)
from tandemserve.testing import Fail, FakeInferenceServer, Hold, accept, say

# Makes the client under test; see conftest.py.
Connect = Callable[..., Any]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def tokens_of(events: list[Event]) -> list[int]:
    return [t for event in events if isinstance(event, Delta) for t in event.token_ids]


def test_leaving_the_with_block_cancels_the_request(
    connect: Connect, server: FakeInferenceServer
) -> None:
    server.scripts.append([accept(), say(0, [1], "a"), Hold()])
    with connect().stream("x", request_id="r1") as stream:
        next(stream)
    assert server.wait_until_left("r1")
    with pytest.raises(RequestCancelled):
        next(stream)


def test_cancel_ends_the_reading_with_an_error(
    connect: Connect, server: FakeInferenceServer
) -> None:
    server.scripts.append([accept(), say(0, [1], "a"), Hold()])
    stream = connect().stream("x", request_id="r1")
    next(stream)
    stream.cancel()
    stream.cancel()
    with pytest.raises(RequestCancelled) as caught:
        next(stream)
    assert caught.value.request_id == "r1"
    assert server.wait_until_left("r1")


def test_closing_a_stream_cancels_the_request(
    connect: Connect, server: FakeInferenceServer
) -> None:
    server.scripts.append([accept(), say(0, [1], "a"), Hold()])
    stream = connect().stream("x", request_id="r1")
    next(stream)
    stream.close()
    stream.close()
    with pytest.raises(RequestCancelled):
        next(stream)
    assert server.wait_until_left("r1")


def test_cancelling_a_finished_stream_is_harmless(connect: Connect) -> None:
    stream = connect().stream("ab")
    assert text_of(list(stream)) == "ab"
    stream.cancel()
    assert list(stream) == []
    assert stream.completion().text == "ab"


def test_a_protocol_violation_cancels_the_request(
    connect: Connect, server: FakeInferenceServer
) -> None:
    server.scripts.append([accept(), say(5, [1], "a"), Hold()])
    with pytest.raises(ProtocolViolation):
        connect().generate("x", request_id="r1")
    assert server.wait_until_left("r1")


def test_the_deadline_ends_the_call_on_both_sides(
    connect: Connect, server: FakeInferenceServer
) -> None:
    server.scripts.append([accept(), say(0, [1], "a"), Hold()])
    with pytest.raises(DeadlineExceeded, match="raise timeout_s") as caught:
        connect().generate("x", request_id="r1", timeout_s=0.3)
    assert caught.value.request_id == "r1"
    assert server.wait_until_left("r1")


def test_the_client_wide_deadline_is_used_where_a_call_names_none(
    connect: Connect, server: FakeInferenceServer
) -> None:
    server.scripts.append([accept(), Hold()])
    with pytest.raises(DeadlineExceeded):
        connect(timeout_s=0.3).generate("x", timeout_s=None)


def test_no_retry_that_cannot_be_in_time(
    connect: Connect, server: FakeInferenceServer, delays: list[float]
) -> None:
    server.failures.append(
        Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", code="queue_full", retry_after_s=20)
    )
    with pytest.raises(QueueFull):
        connect().generate("x", timeout_s=10)
    assert delays == []


def test_a_closed_client_says_so(connect: Connect) -> None:
    client = connect()
    assert client.generate("a").text == "a"
    client.close()
    client.close()
    for call in (lambda: client.generate("a"), client.list_models):
        with pytest.raises(ClientClosed, match="make a new one"):
            call()


def test_closing_the_client_ends_its_streams(connect: Connect, server: FakeInferenceServer) -> None:
    server.scripts.append([accept(), say(0, [1], "a"), Hold()])
    client = connect()
    stream = client.stream("x", request_id="r1")
    next(stream)
    client.close()
    with pytest.raises(ClientClosed):
        next(stream)
    assert server.wait_until_left("r1")
