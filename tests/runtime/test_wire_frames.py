"""How reports share frames: as few as keep the order of each task's."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.wire import ReportBatch, decode_response, encode_reports
from scheduling.ids import TaskId
from scheduling.messages import (
    DecodeStarted,
    KvPushed,
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


def decoded(batch: list[Report], *, has_openings: bool) -> list[tuple[Report, ...]]:
    found = []
    for frame in encode_reports(batch, LOAD, has_openings=has_openings):
        arrived = decode_response(frame)
        assert isinstance(arrived, ReportBatch)
        found.append(arrived.reports)
    return found


def test_a_router_that_reads_openings_gets_a_beginning_and_its_token_in_one_frame() -> None:
    batch: list[Report] = []
    for name in ("a/0", "b/0", "c/0"):
        task_id = TaskId(name)
        token = TokensEmitted(task_id, 0, (1,), "x", finish_reason="length")
        batch += [PrefillStarted(task_id, 0), token, TaskReleased(task_id)]
    (reports,) = decoded(batch, has_openings=True)
    assert reports == (*batch[0::3], *batch[1::3], *batch[2::3])


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["begins", "token", "ends"])),
        max_size=12,
    ),
    st.booleans(),
)
def test_whatever_is_said_of_a_task_keeps_its_order(
    said: list[tuple[str, str]], has_openings: bool
) -> None:
    batch: list[Report] = []
    for number, (name, what) in enumerate(said):
        task_id = TaskId(f"{name}/0")
        if what == "token":
            batch.append(TokensEmitted(task_id, number, (number,), "x"))
        else:
            batch.append(KvPushed(task_id, number, number, 0.0, what))
    frames = decoded(batch, has_openings=has_openings)
    arrived = [report for reports in frames for report in reports]
    for name in "abc":
        task_id = TaskId(f"{name}/0")
        of_task = [report for report in batch if report.task_id == task_id]
        assert [report for report in arrived if report.task_id == task_id] == of_task
    if has_openings:
        assert len(frames) <= len(decoded(batch, has_openings=False))
