"""Both clients: what is tried again, how often, and that nothing is given out twice."""

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tandemserve import (
    ConnectionFailed,
    Delta,
    Event,
    LimitExceeded,
    ProtocolViolation,
    QueueFull,
)
from tandemserve.api.v1.inference_pb2 import GenerateRequest, GenerateResponse
from tandemserve.testing import Fail, FakeInferenceServer, Hold, accept, finish, say

# Makes the client under test; see conftest.py.
Connect = Callable[..., Any]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def tokens_of(events: list[Event]) -> list[int]:
    return [t for event in events if isinstance(event, Delta) for t in event.token_ids]


def test_a_broken_stream_goes_on_without_repeating_anything(
    connect: Connect, server: FakeInferenceServer, delays: list[float]
) -> None:
    server.scripts.append([accept(), say(0, [1], "a"), say(1, [2], ""), Fail()])
    server.scripts.append([accept(attached=True), say(0, [1, 2, 3], "abc"), Fail()])
    server.scripts.append([accept(), say(0, [1, 2], "ab"), say(2, [3, 4], "cd"), finish(4)])
    events = list(connect().stream("x"))
    assert [event for event in events if isinstance(event, Delta)] == [
        Delta(0, 0, (1,), "a"),
        Delta(0, 1, (2,), ""),
        Delta(0, 2, (3,), "bc"),
        Delta(0, 3, (4,), "d"),
    ]
    first, second, third = generate_requests(server)
    assert not first.HasField("resume")
    # All but the newest delta, whose place in the answer is not known yet.
    assert [resumed(second), resumed(third)] == [{0: [1]}, {0: [1]}]
    assert second.resume.seed == third.resume.seed == 7
    second.ClearField("resume")
    assert first == second
    assert len(delays) == 2


def generate_requests(server: FakeInferenceServer) -> list[GenerateRequest]:
    return [request for request in server.requests if isinstance(request, GenerateRequest)]


def resumed(request: GenerateRequest) -> dict[int, list[int] | None]:
    """The tokens of each answer that the client has; None for one that has ended."""
    choices = request.resume.choices
    return {c.index: None if c.is_finished else list(c.token_ids) for c in choices}


def test_a_stream_goes_on_where_it_was_resumed(
    connect: Connect, server: FakeInferenceServer, delays: list[float]
) -> None:
    other_answer: list[GenerateResponse | Fail | Hold] = [say(0, [5, 6], "", 1), finish(2, 1)]
    later: list[GenerateResponse | Fail | Hold] = [say(1, [2, 3], "bc"), say(3, [4], "d"), Fail()]
    server.scripts.append([accept(max_tokens=9), say(0, [1], "a"), *other_answer, *later])
    # Another router computes on from three tokens; the fourth is known and comes again.
    server.scripts.append([accept(max_tokens=9), say(3, [4], "d"), say(4, [5], "e"), finish(5)])
    answer = connect().generate("x", n=2)
    assert [choice.token_ids for choice in answer.choices] == [(1, 2, 3, 4, 5), (5, 6)]
    assert [choice.text for choice in answer.choices] == ["abcde", ""]
    assert resumed(generate_requests(server)[1]) == {0: [1, 2, 3], 1: None}
    assert generate_requests(server)[1].resume.max_tokens == 9


def test_a_resumed_stream_that_leaves_a_token_out_is_refused(
    connect: Connect, server: FakeInferenceServer
) -> None:
    server.scripts.append([accept(), say(0, [1, 2], "ab"), say(2, [3], "c"), Fail()])
    server.scripts.append([accept(), say(3, [4], "d"), say(5, [5], "e"), finish(5)])
    with pytest.raises(ProtocolViolation, match="jumps to token 5 where 4 was due"):
        connect().generate("x")


def test_another_router_is_asked_when_the_first_is_gone(
    connect: Connect, server: FakeInferenceServer, delays: list[float]
) -> None:
    with FakeInferenceServer() as other:
        both = {server.target: server, other.target: other}
        for fake in both.values():
            fake.scripts.append([accept(), say(0, [1], "a"), say(1, [2], "b"), Fail()])
        client = connect(f"{server.target}, {other.target}")
        # The first breaks it off, so does the second; then the first again has no more scripts.
        with pytest.raises(ProtocolViolation):
            client.generate("x")
        assert len(server.requests) + len(other.requests) == 3
        assert {len(fake.requests) for fake in both.values()} == {1, 2}
        # Nobody was asked yet, so there is nothing to wait for; then there is.
        assert delays[0] < 0.06 <= delays[1]


def test_a_router_that_drains_sends_its_callers_to_another_at_once(
    connect: Connect, server: FakeInferenceServer, delays: list[float]
) -> None:
    leaving = Fail(code="no_worker_available", retry_after_s=1.0)
    with FakeInferenceServer() as other:
        client = connect(f"{server.target},{other.target}")
        server.failures.append(leaving)
        other.failures.append(leaving)
        assert client.generate("x").text == "x"
        assert client.list_models() == ("fake",)
    assert delays[0] < 0.06
    assert delays[1] > 1.0


def test_all_routers_gone_is_an_error_after_the_patience(
    connect: Connect, server: FakeInferenceServer, delays: list[float]
) -> None:
    server.stop()
    with pytest.raises(ConnectionFailed):
        connect(retry_for_s=5.0).generate("x")
    assert 3.0 < sum(delays) <= 5.0


def test_a_caller_who_gave_little_time_is_not_kept_longer(
    connect: Connect, server: FakeInferenceServer
) -> None:
    server.stop()
    with pytest.raises(ConnectionFailed):
        connect(sleep=None).generate("x", timeout_s=0.3)


def test_every_new_token_renews_the_patience(
    connect: Connect, server: FakeInferenceServer, delays: list[float]
) -> None:
    text = "abcdefgh"
    for i in range(1, len(text)):
        server.scripts.append([accept(), say(0, list(range(i)), text[:i]), Fail()])
    server.scripts.append([accept(), say(0, list(range(8)), text), finish(8)])
    assert connect(max_retries=1).generate("x").text == text
    assert len(delays) == 7
    assert max(delays) <= 0.2


def test_without_progress_the_patience_ends(
    connect: Connect, server: FakeInferenceServer, delays: list[float]
) -> None:
    for _ in range(9):
        server.scripts.append([accept(), say(0, [1], "a"), Fail()])
    with pytest.raises(ConnectionFailed):
        connect(max_retries=3).generate("x")
    assert len(server.requests) == 4
    assert len(delays) == 3


def test_max_retries_zero_means_one_attempt(connect: Connect, server: FakeInferenceServer) -> None:
    server.failures.append(Fail())
    with pytest.raises(ConnectionFailed):
        connect(max_retries=0).list_models()
    assert len(server.requests) == 1


def test_a_full_queue_is_tried_again_no_sooner_than_asked(
    connect: Connect, server: FakeInferenceServer, delays: list[float]
) -> None:
    full = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", code="queue_full", retry_after_s=1.5)
    server.failures.extend([full, full])
    assert connect().generate("ok").text == "ok"
    assert len(delays) == 2
    assert all(1.5 < delay < 2.5 for delay in delays)
    server.failures.extend([full] * 3)
    with pytest.raises(QueueFull) as caught:
        connect().generate("ok")
    assert caught.value.retry_after_s == 1.5


def test_queries_are_tried_again_too(
    connect: Connect, server: FakeInferenceServer, delays: list[float]
) -> None:
    server.failures.extend([Fail(), Fail()])
    assert connect().list_models() == ("fake",)
    assert len(delays) == 2


def test_a_quota_without_a_retry_delay_is_not_tried_again(
    connect: Connect, server: FakeInferenceServer, delays: list[float]
) -> None:
    server.failures.append(Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much"))
    with pytest.raises(LimitExceeded):
        connect().generate("x")
    assert delays == []


def test_a_replay_with_other_tokens_is_refused(
    connect: Connect, server: FakeInferenceServer
) -> None:
    server.scripts.append([accept(), say(0, [1, 2], "ab"), Fail()])
    server.scripts.append([accept(), say(0, [1, 9, 3], "axc"), finish(3)])
    with pytest.raises(ProtocolViolation, match="other tokens"):
        connect().generate("x")


def test_a_connection_that_breaks_after_the_end_loses_nothing(
    connect: Connect, server: FakeInferenceServer, delays: list[float]
) -> None:
    server.scripts.append([accept(), say(0, [1], "a"), finish(1), Fail()])
    assert connect().generate("x").text == "a"
    assert delays == []


def test_a_restarted_router_is_found_again(connect: Connect, server: FakeInferenceServer) -> None:
    hold = Hold()
    server.scripts.append([accept(), say(0, [1], "a"), hold])
    server.scripts.append([accept(), say(0, [1, 2], "ab"), finish(2)])
    stream = connect(sleep=None).stream("x")
    assert text_of([next(stream)]) == "a"
    server.stop()
    server.start()
    assert text_of(list(stream)) == "b"
