"""Both clients: routers send what is ready together as one message."""

from collections.abc import Callable
from typing import Any

import pytest

from tandemserve import Delta, Finished, ProtocolViolation
from tandemserve.api.v1.inference_pb2 import GenerateRequest
from tandemserve.testing import Fail, FakeInferenceServer, accept, finish, joined, say

# Makes the client under test; see conftest.py.
Connect = Callable[..., Any]


def test_events_of_one_message_come_one_after_the_other(
    connect: Connect, server: FakeInferenceServer
) -> None:
    together = joined(say(0, [1, 2], "ab"), say(0, [7], "x", 1), finish(1, 1), finish(2))
    server.scripts.append([accept(), together])
    events = list(connect().stream("x", n=2))
    assert events[:2] == [Delta(0, 0, (1, 2), "ab"), Delta(1, 0, (7,), "x")]
    assert [event.index for event in events[2:] if isinstance(event, Finished)] == [1, 0]
    (request,) = (each for each in server.requests if isinstance(each, GenerateRequest))
    assert request.joins_events, "else a router sends each event by itself"


def test_a_stream_that_breaks_behind_joined_events_goes_on_without_repeating_any(
    connect: Connect, server: FakeInferenceServer
) -> None:
    server.scripts.append([accept(), joined(say(0, [1], "a"), say(1, [2], "b")), Fail()])
    server.scripts.append([joined(accept(), say(0, [1, 2], "ab"), say(2, [3], "c"), finish(3))])
    events = list(connect().stream("x"))
    texts = [event.text for event in events if isinstance(event, Delta)]
    assert texts == ["a", "b", "c"]
    assert isinstance(events[-1], Finished)


def test_what_was_right_in_a_message_comes_before_what_was_wrong(
    connect: Connect, server: FakeInferenceServer
) -> None:
    server.scripts.append([accept(), joined(say(0, [1], "a"), say(2, [3], "c"), finish(3))])
    stream = connect().stream("x")
    assert next(stream) == Delta(0, 0, (1,), "a")
    with pytest.raises(ProtocolViolation, match="jumps to token 2 where 1 was due"):
        next(stream)
