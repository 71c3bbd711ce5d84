"""Changes of cached prefixes travel whole, with a frame or in as many as they need."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.wire import ProtocolError, ReportBatch, decode_response, encode_reports
from runtime.wire.prefixes import MAX_KEYS
from scheduling.ids import TaskId
from scheduling.messages import PrefillStarted, WorkerLoad
from scheduling.prefix_chain import PrefixKey
from scheduling.prefix_index import PrefixChanges, PrefixIndex
from tandemserve.internal.v1 import worker_pb2 as pb

LOAD = WorkerLoad(1, 2, 3, 4)
keys = st.lists(st.integers(0, 2**64 - 1).map(PrefixKey), max_size=5).map(tuple)


@given(st.builds(PrefixChanges, keys, keys, st.booleans()))
def test_changes_go_with_the_frame_that_is_sent_anyway(changes: PrefixChanges) -> None:
    report = PrefillStarted(TaskId("a/0"), 16)
    (frame,) = encode_reports([report], LOAD, changes)
    assert decode_response(frame) == ReportBatch((report,), LOAD, changes)


def test_a_frame_without_news_says_nothing_of_prefixes() -> None:
    (frame,) = encode_reports([], LOAD)
    assert decode_response(frame) == ReportBatch((), LOAD, None)


def test_a_large_snapshot_comes_in_parts_and_only_the_first_one_replaces() -> None:
    added = tuple(map(PrefixKey, range(2 * MAX_KEYS + 1)))
    frames = encode_reports([], LOAD, PrefixChanges(added, is_snapshot=True))
    assert len(frames) == 3
    index = PrefixIndex(len(added))
    index.apply(PrefixChanges((PrefixKey(2**63),)))
    for frame in frames:
        batch = decode_response(frame)
        assert isinstance(batch, ReportBatch)
        assert batch.prefixes is not None
        index.apply(batch.prefixes)
        assert batch == replace(batch, load=LOAD)
    assert len(index) == len(added)


def test_more_keys_than_a_frame_may_hold_are_refused() -> None:
    (frame,) = encode_reports([], LOAD)
    frame.reports.prefixes.CopyFrom(pb.PrefixChanges(removed=range(MAX_KEYS + 1)))
    with pytest.raises(ProtocolError, match=r"prefixes\.removed"):
        decode_response(frame)
