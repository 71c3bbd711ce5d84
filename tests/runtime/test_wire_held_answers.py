"""What a router and a mixed worker tell each other of answers that wait there, on the wire."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.wire import ProtocolError, decode_request, encode_commands
from runtime.wire.reports import report_from_proto, report_to_proto
from scheduling.block_leases import LeaseKind, LentPlace
from scheduling.ids import TaskId
from scheduling.messages import AdmitPrompt, Preempted, SequenceSpec, StartDecode
from scheduling.sampling import SamplingParams, StopParams

SEQUENCE = SequenceSpec((1, 2), (), SamplingParams(), StopParams(4))
PLACE = LentPlace(TaskId("a/0"), 1, 2, 3, LeaseKind.PIPELINE)


@given(st.booleans())
def test_a_prompt_says_whether_its_answer_is_held(is_answer_held: bool) -> None:
    command = AdmitPrompt(TaskId("c/0"), SEQUENCE, 3, is_answer_held=is_answer_held)
    assert decode_request(encode_commands([command])) == (command,)


@pytest.mark.parametrize("place", [None, PLACE])
def test_an_answer_that_may_begin_is_told_where(place: LentPlace | None) -> None:
    command = StartDecode(TaskId("c/0"), (7,), place)
    assert decode_request(encode_commands([command])) == (command,)


def test_an_answer_is_not_begun_in_a_place_that_cannot_be() -> None:
    message = encode_commands([StartDecode(TaskId("c/0"), (7,), PLACE)])
    message.commands.commands[0].start_decode.place.num_blocks = 0
    with pytest.raises(ProtocolError, match="num_blocks"):
        decode_request(message)


@given(st.booleans())
def test_who_makes_room_says_whether_it_keeps_its_kv(keeps_kv: bool) -> None:
    report = Preempted(TaskId("c/0"), keeps_kv)
    assert report_from_proto(report_to_proto(report)) == report
