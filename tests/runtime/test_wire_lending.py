"""Places that are lent, and blocks that are inherited, travel whole or are refused by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.wire import (
    ProtocolError,
    ReportBatch,
    decode_request,
    decode_response,
    encode_commands,
    encode_reports,
)
from scheduling.block_leases import BlocksInherited, LeaseKind, LentPlace
from scheduling.ids import TaskId
from scheduling.messages import AdmitPrompt, SequenceSpec, WorkerLoad
from scheduling.sampling import SamplingParams, StopParams
from tandemserve.internal.v1 import worker_pb2 as pb

SEQUENCE = SequenceSpec((1, 2), (), SamplingParams(), StopParams(4))
LOAD = WorkerLoad(1, 2, 3, 4)
positive = st.integers(1, 2**31 - 1)
places = st.builds(
    LentPlace,
    host_id=st.sampled_from([TaskId("a/0"), TaskId("b/0")]),
    first=st.integers(0, 2**31 - 1),
    num_blocks=positive,
    num_response_tokens=positive,
    kind=st.sampled_from(LeaseKind),
)


@given(st.none() | places)
def test_a_prompt_says_where_it_borrows(place: LentPlace | None) -> None:
    command = AdmitPrompt(TaskId("c/0"), SEQUENCE, 3, place=place)
    assert decode_request(encode_commands([command])) == (command,)


@given(positive)
def test_a_worker_says_what_was_inherited(num_blocks: int) -> None:
    report = BlocksInherited(TaskId("a/0"), num_blocks)
    (frame,) = encode_reports([report], LOAD)
    assert decode_response(frame) == ReportBatch((report,), LOAD)


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("host_task_id", "", "task_id"),
        ("num_blocks", 0, "num_blocks"),
        ("num_response_tokens", 0, "num_response_tokens"),
        ("first", 2**31, "first"),
        ("kind", pb.LEASE_KIND_UNSPECIFIED, "kind"),
    ],
)
def test_a_place_that_cannot_be_is_refused(field: str, value: str | int, named: str) -> None:
    place = LentPlace(TaskId("a/0"), 1, 2, 3, LeaseKind.PIPELINE)
    message = encode_commands([AdmitPrompt(TaskId("c/0"), SEQUENCE, 3, place=place)])
    setattr(message.commands.commands[0].admit_prompt.place, field, value)
    with pytest.raises(ProtocolError, match=named):
        decode_request(message)


def test_nothing_is_inherited_by_no_block() -> None:
    (frame,) = encode_reports([BlocksInherited(TaskId("a/0"), 1)], LOAD)
    frame.reports.reports[0].blocks_inherited.num_blocks = 0
    with pytest.raises(ProtocolError, match="num_blocks"):
        decode_response(frame)
