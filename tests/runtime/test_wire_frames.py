"""How reports share frames: as few as keep the order of each task's."""

from runtime.wire import ReportBatch, decode_response, encode_reports
from scheduling.ids import TaskId
from scheduling.messages import (
    DecodeStarted,
    PrefillStarted,
    Report,
    TaskReleased,
    TokensEmitted,
    WorkerLoad,
)

LOAD = WorkerLoad(7, 2, 1, 99)


def test_an_iteration_of_many_sequences_is_one_frame() -> None:
    tokens = [TokensEmitted(TaskId(f"r{i}/0"), i, (i,), "x") for i in range(32)]
    ends = [TaskReleased(TaskId(f"r{i}/0")) for i in range(32)]
    assert len(encode_reports([*tokens, *ends], LOAD)) == 1


def test_tokens_after_another_report_of_their_task_open_a_second_frame() -> None:
    batch: list[Report] = [DecodeStarted(TaskId("a/0")), TokensEmitted(TaskId("a/0"), 0, (1,), "x")]
    assert len(encode_reports(batch, LOAD)) == 2
    other: list[Report] = [DecodeStarted(TaskId("b/0")), TokensEmitted(TaskId("a/0"), 0, (1,), "x")]
    assert len(encode_reports(other, LOAD)) == 1


def test_tasks_that_begin_and_emit_together_share_two_frames() -> None:
    """A router pays for each frame several times what it pays for a report in it."""
    batch: list[Report] = []
    for name in ("a/0", "b/0", "c/0"):
        task_id = TaskId(name)
        token = TokensEmitted(task_id, 0, (1,), "x", finish_reason="length")
        batch += [PrefillStarted(task_id, 0), token, TaskReleased(task_id)]
    begun, emitted = [decode_response(frame) for frame in encode_reports(batch, LOAD)]
    assert isinstance(begun, ReportBatch)
    assert isinstance(emitted, ReportBatch)
    assert begun.reports == tuple(batch[0::3])
    assert emitted.reports == (*batch[1::3], *batch[2::3])
