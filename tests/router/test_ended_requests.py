"""What operators may ask about a request: its timeline, and how long it is remembered."""

import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from router.ended_requests import EndedRequests, RequestRecord, record_of
from router.events import CallerLeft, DrainTimedOut, EmitFailed, OperatorCancelled, WorkerLost
from router.sequence import Request
from router.testing import (
    DECODE,
    PREFILL,
    CoreUnderTest,
    assert_empty,
    commands,
    of_type,
    spec_of,
    through_prefill,
    tokens,
)
from router.timeline import Entry, Timeline
from scheduling.ids import Incarnation, RequestId, WorkerId
from scheduling.lifecycle import Change, Phase
from scheduling.messages import CancelTask, PrefillStarted, TaskReleased


def only_record(core: CoreUnderTest) -> RequestRecord:
    (record,) = core.core.state.ended
    return record


def phases(record: RequestRecord, index: int = 0) -> list[str]:
    return [entry.phase.value for entry in record.answers[index].timeline.entries]


def test_a_timeline_has_every_change_with_its_time_and_place() -> None:
    core = CoreUnderTest()
    core.ask(spec_of(max_tokens=3))
    core.now = 1.0
    task = through_prefill(core)
    core.now = 2.5
    core.report(DECODE, tokens(task, 1, 12, 13, finish="length"), TaskReleased(task))
    record = only_record(core)
    assert record.state == "finished"
    assert (record.arrival_at_s, record.ended_at_s) == (0.0, 2.5)
    entries = record.answers[0].timeline.entries
    assert [(e.at_s, e.phase, e.worker_id) for e in entries] == [
        (0.0, Phase.PROMPT_QUEUED, ""),
        (0.0, Phase.PREFILLING, PREFILL),
        (1.0, Phase.GENERATION_QUEUED, PREFILL),
        (1.0, Phase.TRANSFERRING, DECODE),
        (1.0, Phase.DECODING, DECODE),
        (2.5, Phase.FINISHED, ""),
    ]
    assert [e.num_output_tokens for e in entries] == [0, 0, 1, 1, 1, 3]
    assert entries[1].num_blocks == 2
    assert entries[1].started_at_s == 1.0


def test_a_lost_worker_is_a_new_try_with_its_reason() -> None:
    core = CoreUnderTest()
    core.ask(spec_of())
    core.report(PREFILL, PrefillStarted(core.task_id()))
    core.tell(WorkerLost(WorkerId(PREFILL), Incarnation(1)))
    running = core.core.state.request_by_id[RequestId("r")]
    entry = record_of(running).answers[0].timeline.entries[-1]
    assert (entry.change, entry.phase) == (Change.WORKER_LOST, Phase.PROMPT_QUEUED)
    assert (entry.number_of_try, entry.reason) == (2, "worker prefill-0 was lost")


def test_who_ended_a_request_is_remembered() -> None:
    core = CoreUnderTest()
    core.ask(spec_of("a"))
    core.ask(spec_of("b"))
    core.tell(CallerLeft(RequestId("a")))
    core.tell(OperatorCancelled(RequestId("b"), "cancelled by an operator (eve); ask"))
    by_operator, by_caller = core.core.state.ended
    assert (by_operator.state, by_caller.state) == ("cancelled", "cancelled")
    assert by_operator.error_message == "cancelled by an operator (eve); ask"
    ends = [r.answers[0].timeline.entries[-1].change for r in (by_caller, by_operator)]
    assert ends == [Change.CALLER_LEFT, Change.OPERATOR_CANCELLED]


def test_a_router_that_must_end_tells_every_caller_so_and_both_workers() -> None:
    core = CoreUnderTest()
    core.ask(spec_of("a", num_choices=2))
    core.ask(spec_of("b"))
    core.actions.clear()
    core.tell(DrainTimedOut())
    failures = of_type(core.actions, EmitFailed)
    assert [failure.request_id for failure in failures] == ["a", "b"]
    for failure in failures:
        assert (failure.error.code, failure.error.retryable) == ("no_worker_available", True)
        assert failure.error.message.startswith("this router is shutting down")
        assert failure.error.retry_after_s
    assert any(isinstance(command, CancelTask) for _, command in commands(core.actions))
    assert [record.state for record in core.core.state.ended] == ["failed", "failed"]
    for leg in core.core.state.legs.held():
        core.report(leg.worker_id or "", TaskReleased(leg.task_id))
    assert_empty(core)


def test_a_running_request_has_no_end() -> None:
    core = CoreUnderTest()
    core.ask(spec_of(num_choices=2))
    record = record_of(core.core.state.request_by_id[RequestId("r")])
    assert (record.state, record.ended_at_s, len(record.answers)) == ("running", None, 2)
    assert len(core.core.state.ended) == 0


def test_a_long_timeline_keeps_its_beginning_and_its_end() -> None:
    timeline = Timeline()
    for number in range(1000):
        timeline.add(Entry(number, Change.PREEMPTED, Phase.PROMPT_QUEUED, "", 0, 0, number))
    kept = [entry.number_of_try for entry in timeline.entries]
    assert kept == [*range(16), *range(1000 - 48, 1000)]
    assert timeline.num_dropped == 1000 - len(kept)


def record(name: str, num_entries: int = 7, reason: str = "") -> RequestRecord:
    request = Request(spec_of(name), arrival_at_s=0.0, deadline_at_s=None)
    core = CoreUnderTest()
    core.ask(request.spec)
    sequence = core.core.state.request_by_id[RequestId(name)].sequences[0]
    for number in range(num_entries - len(sequence.timeline.entries)):
        why = f"{reason}{number}" if reason else ""
        sequence.timeline.add(
            Entry(
                number + 0.5,
                Change.PREEMPTED,
                Phase.PROMPT_QUEUED,
                f"w-{number}",
                300,
                300,
                300,
                why,
            )
        )
    core.tell(CallerLeft(RequestId(name)))
    return only_record(core)


def test_the_oldest_are_forgotten_by_number_and_by_bytes() -> None:
    book = EndedRequests(max_requests=3, max_bytes=10**9)
    for name in "abcde":
        book.add(record(name))
    assert [kept.request_id for kept in book] == ["e", "d", "c"]
    size = record("x").num_bytes
    book = EndedRequests(max_requests=100, max_bytes=4 * size)
    for name in "abcdefgh":
        book.add(record(name))
        assert book.num_bytes <= 4 * size
    assert [kept.request_id for kept in book] == ["h", "g", "f", "e"]


def test_an_id_that_is_used_again_is_remembered_once() -> None:
    book = EndedRequests()
    first, second = record("a"), record("a", num_entries=9)
    book.add(first)
    book.add(record("b"))
    book.add(second)
    assert [kept.request_id for kept in book] == ["a", "b"]
    assert book.get(RequestId("a")) is second
    assert book.num_bytes == second.num_bytes + record("b").num_bytes


def test_a_record_larger_than_the_limit_is_not_kept() -> None:
    book = EndedRequests(max_bytes=10)
    book.add(record("a"))
    assert (len(book), book.num_bytes) == (0, 0)


def test_the_counted_bytes_are_no_less_than_the_real_ones() -> None:
    for kept in (record("a"), record("b" * 128, 64, "worker ö was lost " * 4)):
        assert kept.num_bytes >= sum(map(sys.getsizeof, parts(kept, set())))


def parts(value: Any, seen: set[int]) -> Iterator[object]:
    """Everything reachable that belongs to this record alone."""
    if id(value) in seen or value is None or isinstance(value, bool | Change | Phase):
        return
    seen.add(id(value))
    yield value
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from parts(getattr(value, field.name), seen)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from parts(item, seen)
