"""All answers of a router share a bound: what can be had again goes first, nothing in silence."""

import asyncio
from contextlib import aclosing

import pytest

from router.dispatcher import Dispatcher
from router.events import (
    EmitFailed,
    EmitFinished,
    EmitTokens,
    Event,
    PhaseTimings,
    ReaderFellBehind,
    ReportsArrived,
)
from router.stream_memory import StreamMemory
from router.streams import AcceptedInfo, RequestStream, StreamBook
from router.testing import DECODE, CoreUnderTest, spec_of, through_prefill
from router.testing import tokens as reported
from runtime.clock import ManualClock
from runtime.telemetry import start_telemetry
from scheduling.errors import ReaderTooSlow, RequestCancelled
from scheduling.ids import RequestId, TaskId, WorkerId
from scheduling.messages import TokensEmitted

PATIENCE_S = 10.0
INFO = AcceptedInfo("model", 3, 5, "standard")
TIMINGS = PhaseTimings(0, 0, 0, 0, 0, 0, None, 0, 0, 0, "", "", "", False, 0, 0)


def token(stream: RequestStream, number: int) -> EmitTokens:
    return EmitTokens(stream.request_id, 0, TokensEmitted(TaskId("t"), number, (number,), "x"))


def finished(stream: RequestStream) -> EmitFinished:
    return EmitFinished(stream.request_id, 0, "stop", None, 2, TIMINGS)


TOKEN_BYTES = 744
MEMORY_TOKENS = 64


class Desk:
    """A book with room for 64 tokens in all, and what is in it."""

    def __init__(self, max_finished_bytes: int = 10**9) -> None:
        self.freed: list[int] = []
        self.memory: StreamMemory[RequestStream] = StreamMemory(
            MEMORY_TOKENS * TOKEN_BYTES, self.freed.append
        )
        self.book = StreamBook(max_finished_bytes=max_finished_bytes, memory=self.memory)

    def stream(self, name: str, num_tokens: int, *, is_over: bool = False) -> RequestStream:
        stream = RequestStream(RequestId(name), b"f", 1, INFO)
        self.book.open(stream)
        for number in range(num_tokens):
            stream.append(token(stream, number))
        if is_over:
            stream.append(finished(stream))
            self.book.closed(stream)
        self.memory.check_invariants()
        return stream


async def read(stream: RequestStream, reader: int, num_tokens: int | None = None) -> list[int]:
    """So many tokens and what comes with them, or all to the end."""
    ids: list[int] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(stream.follow(reader)) as batches:
        async for batch in batches:
            for each in batch:
                ids += each.tokens.token_ids if isinstance(each, EmitTokens) else ()
            if len(ids) == num_tokens:
                break
    return ids


def test_finished_answers_that_nobody_reads_are_forgotten_first_and_the_oldest_of_them() -> None:
    desk = Desk()
    old, read_now, new = (desk.stream(name, 20, is_over=True) for name in ("old", "read", "new"))
    read_now.take_over()
    running = desk.stream("running", 6)
    assert desk.memory.is_too_full
    assert desk.book.make_room() == []
    desk.memory.check_invariants()
    known = [desk.book.get(each.request_id) for each in (old, read_now, new, running)]
    assert known == [None, read_now, new, running]
    assert not desk.memory.is_too_full
    assert old.num_bytes not in (0, desk.memory.num_bytes)


async def test_then_goes_what_was_sent_of_the_largest_and_its_reader_loses_nothing() -> None:
    desk = Desk()
    large, small = desk.stream("large", 40), desk.stream("small", 20)
    reader = large.take_over()
    assert await read(large, reader, 40) == list(range(40))
    for number in range(40, 46):
        large.append(token(large, number))
    assert desk.book.make_room() == []
    desk.memory.check_invariants()
    assert not desk.memory.is_too_full
    # No more of it than need be, and nothing of what others have.
    assert large.can_serve((30,))
    assert not large.can_serve(())
    assert small.can_serve(())
    large.append(finished(large))
    assert await read(large, reader) == list(range(40, 46))


def test_then_that_is_named_of_which_most_is_unread() -> None:
    desk = Desk()
    streams = [desk.stream(f"r{number}", 9 + number) for number in range(6)]
    for stream in streams:
        stream.take_over()
    assert desk.memory.is_too_full
    assert desk.book.make_room() == [streams[5]]
    streams[5].fail(EmitFailed(RequestId("r5"), ReaderTooSlow(1, is_shared=True), True))
    desk.memory.check_invariants()
    assert not desk.memory.is_too_full
    assert desk.book.make_room() == []


def test_what_is_forgotten_counts_for_as_long_as_somebody_reads_it() -> None:
    """Otherwise readers that stand still behind the end of their answers were not bounded."""
    desk = Desk(max_finished_bytes=0)
    stream = desk.stream("r", 0)
    stream.take_over()
    earlier = stream.num_bytes
    for number in range(10):
        stream.append(token(stream, number))
    stream.append(finished(stream))
    desk.book.closed(stream)
    assert desk.book.get(RequestId("r")) is None
    assert desk.memory.num_bytes == stream.num_bytes > earlier
    # Of the same name, another is begun meanwhile.
    again = desk.stream("r", 3)
    assert desk.memory.num_bytes == stream.num_bytes + again.num_bytes
    stream.take_over()
    stream.leave()
    assert desk.memory.num_bytes == stream.num_bytes + again.num_bytes
    stream.leave()
    assert desk.memory.num_bytes == again.num_bytes
    desk.memory.check_invariants()


def test_a_refused_request_and_one_that_takes_its_name_again_are_counted_once() -> None:
    desk = Desk()
    desk.stream("refused", 0)
    desk.book.discard(RequestId("refused"))
    failed = desk.stream("r", 5)
    failed.fail(EmitFailed(RequestId("r"), RequestCancelled("left"), gpu_work_spent=False))
    desk.book.closed(failed)
    assert desk.book.find(RequestId("r"), b"f") is None
    assert desk.memory.num_bytes == 0
    desk.stream("r", 5)
    assert desk.memory.num_bytes == 5 * TOKEN_BYTES
    assert desk.freed == []


def test_only_large_logs_are_told_of_when_they_are_gone() -> None:
    desk = Desk(max_finished_bytes=0)
    num_tokens = 2 * 1024 * 1024 // TOKEN_BYTES
    large = desk.stream("large", num_tokens, is_over=True)
    assert desk.freed == [large.num_bytes]
    desk.stream("small", 10, is_over=True)
    assert len(desk.freed) == 1


def test_without_a_bound_nobody_makes_room() -> None:
    memory: StreamMemory[RequestStream] = StreamMemory()
    stream = RequestStream(RequestId("r"), b"f", 1, INFO)
    StreamBook(memory=memory).open(stream)
    stream.append(token(stream, 0))
    assert memory.num_bytes == TOKEN_BYTES
    assert not memory.is_too_full


class Router:
    """A dispatcher with a real core and room for 64 tokens in all, no reader of which reads."""

    def __init__(self) -> None:
        self.core = CoreUnderTest()
        self.desk = Desk()
        metrics = start_telemetry("router", "router-0", version="1").metrics
        self.dispatcher = Dispatcher(self.core.core, self.desk.book, metrics, ManualClock())
        self.dispatcher.ask_ledger = lambda action: None
        self.told: list[Event] = []
        self.dispatcher.on_event = lambda now, event, result: self.told.append(event)

    def report(self, task: TaskId, first: int, count: int) -> None:
        report = reported(task, first, *range(count))
        self.dispatcher.apply(ReportsArrived(WorkerId(DECODE), (report,), None))


async def test_of_running_answers_that_with_most_unread_is_ended_and_told_why() -> None:
    router = Router()
    router.core.ask(spec_of("r", max_tokens=50))
    task = through_prefill(router.core)
    stream, other = router.desk.stream("r", 0), router.desk.stream("other", 30)
    reader = stream.take_over()
    other.take_over()
    for number in range(1, 40):
        router.report(task, number, 1)
    assert other.failure is None
    assert stream.failure is not None
    error = stream.failure.error
    assert isinstance(error, ReaderTooSlow)
    assert "answers of all requests filled the 47616 bytes" in error.message
    assert "or raise max_all_streams_mib" in error.message
    behind = [event for event in router.told if isinstance(event, ReaderFellBehind)]
    assert behind == [ReaderFellBehind(RequestId("r"), 64 * TOKEN_BYTES, is_shared=True)]
    assert not router.desk.memory.is_too_full
    router.desk.memory.check_invariants()
    assert await read(stream, reader) == []


async def test_who_stands_still_behind_the_end_of_an_answer_loses_it_too() -> None:
    router = Router()
    router.core.ask(spec_of("r", max_tokens=50))
    task = through_prefill(router.core)
    done = router.desk.stream("done", 50, is_over=True)
    done.take_over()
    running = router.desk.stream("r", 0)
    running.take_over()
    for number in range(1, 20):
        router.report(task, number, 1)
    assert done.failure is not None
    assert isinstance(done.failure.error, ReaderTooSlow)
    assert done.num_bytes == 0
    assert running.failure is None
    assert running.can_serve(())
    # Who asks again has it computed anew.
    assert router.desk.book.find(done.request_id, b"f") is None
    assert not [event for event in router.told if isinstance(event, ReaderFellBehind)]
    router.desk.memory.check_invariants()


@pytest.mark.parametrize("is_shared", [False, True])
def test_the_error_says_which_limit_it_was(is_shared: bool) -> None:
    message = ReaderTooSlow(1000, is_shared=is_shared).message
    assert ("max_all_streams_mib" in message) is is_shared
    assert "1000 bytes" in message
