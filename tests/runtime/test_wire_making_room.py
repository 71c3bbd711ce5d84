"""What a router and a mixed worker tell each other of room for an urgent prompt, on the wire."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.testing import hello_of
from runtime.wire import (
    ProtocolError,
    ReportBatch,
    decode_request,
    decode_response,
    encode_commands,
    encode_reports,
    encode_worker_hello,
)
from scheduling.ids import TaskId
from scheduling.messages import MakeRoom, RoomMade, WorkerLoad

TASK = TaskId("a/0")
LOAD = WorkerLoad(1, 2, 3, 4)
counts = st.integers(0, 2**31 - 1)


@given(st.integers(1, 2**31 - 1), st.floats(-1e6, 1e6))
def test_a_wish_says_how_much_is_lacking_and_until_when(num_blocks: int, due_in_s: float) -> None:
    command = MakeRoom(TASK, num_blocks, due_in_s)
    assert decode_request(encode_commands([command])) == (command,)


@given(counts)
def test_its_answer_says_how_much_was_given_back(num_blocks: int) -> None:
    report = RoomMade(TASK, num_blocks)
    (frame,) = encode_reports([report], LOAD)
    assert decode_response(frame) == ReportBatch((report,), LOAD)


@pytest.mark.parametrize("makes_room", [True, False])
def test_a_worker_says_whether_it_may_be_asked(makes_room: bool) -> None:
    hello = replace(hello_of("mixed-0"), makes_room=makes_room)
    assert decode_response(encode_worker_hello(hello)) == hello


@pytest.mark.parametrize(
    ("field", "value"), [("num_blocks", 0), ("due_in_s", math.nan), ("due_in_s", math.inf)]
)
def test_a_wish_that_cannot_be_is_refused(field: str, value: float) -> None:
    message = encode_commands([MakeRoom(TASK, 1, 0.5)])
    setattr(message.commands.commands[0].make_room, field, value)
    with pytest.raises(ProtocolError, match=field):
        decode_request(message)
