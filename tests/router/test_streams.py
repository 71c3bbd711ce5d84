"""What a request has produced: followed live, late, again, or by someone else."""

import asyncio
from contextlib import aclosing

import pytest

from router.events import EmitFailed, EmitFinished, EmitTokens, PhaseTimings
from router.stream_log import Emission
from router.streams import AcceptedInfo, RequestStream, StreamBook
from scheduling.errors import DuplicateRequest, ReaderTooSlow, RequestCancelled
from scheduling.ids import RequestId, TaskId
from scheduling.messages import TokensEmitted

PATIENCE_S = 10.0
ID = RequestId("r")
INFO = AcceptedInfo("model", 3, 5, "standard")
TIMINGS = PhaseTimings(0, 0, 0, 0, 0, 0, None, 0, 0, 0, "", "", "", False, 0, 0)
FAILED = EmitFailed(ID, RequestCancelled("left"), gpu_work_spent=False)


def stream_of(
    num_choices: int = 1, request_id: RequestId = ID, fingerprint: bytes = b"f"
) -> RequestStream:
    return RequestStream(request_id, fingerprint, num_choices, INFO)


def token(number: int, index: int = 0) -> EmitTokens:
    return EmitTokens(ID, index, TokensEmitted(TaskId("r/0~1"), number, (number,), "x"))


def tokens(start: int, end: int) -> EmitTokens:
    ids = tuple(range(start, end))
    return EmitTokens(ID, 0, TokensEmitted(TaskId("r/0~1"), start, ids, "x" * len(ids)))


def finished(index: int = 0) -> EmitFinished:
    return EmitFinished(ID, index, "stop", None, 2, TIMINGS)


async def all_of(stream: RequestStream, reader: int) -> list[Emission]:
    got: list[Emission] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(stream.follow(reader)) as batches:
        async for batch in batches:
            got += batch
    return got


async def test_a_live_reader_gets_everything_once_and_in_order() -> None:
    stream = stream_of()
    reading = asyncio.create_task(all_of(stream, stream.take_over()))
    wanted: list[Emission] = [token(0), token(1), finished()]
    for emission in wanted:
        stream.append(emission)
        await asyncio.sleep(0)
    assert await reading == wanted


async def test_a_late_reader_gets_the_whole_answer_in_one_batch() -> None:
    stream = stream_of()
    for emission in (token(0), token(1), finished()):
        stream.append(emission)
    async with aclosing(stream.follow(stream.take_over())) as batches:
        assert await anext(batches) == [tokens(0, 2), finished()]
        assert await anext(batches, None) is None


async def test_a_stream_of_several_answers_is_over_with_the_last() -> None:
    stream = stream_of(num_choices=2)
    stream.append(finished(0))
    assert not stream.is_over
    stream.append(finished(1))
    assert stream.is_over


async def test_who_takes_over_starts_from_the_beginning_and_sends_the_other_away() -> None:
    stream = stream_of()
    first = stream.take_over()
    stream.append(token(0))
    reading = asyncio.create_task(all_of(stream, first))
    await asyncio.sleep(0)
    second = stream.take_over()
    assert not stream.is_reader(first)
    assert await reading == [token(0)]
    stream.append(finished())
    assert await all_of(stream, second) == [token(0), finished()]


async def test_a_failure_wakes_the_reader() -> None:
    stream = stream_of()
    reading = asyncio.create_task(all_of(stream, stream.take_over()))
    await asyncio.sleep(0)
    stream.fail(FAILED)
    assert await reading == []
    assert stream.failure is FAILED


async def test_a_repeated_call_finds_its_stream_and_another_one_is_refused() -> None:
    book, stream = StreamBook(), stream_of()
    book.open(stream)
    assert book.find(ID, b"f") is stream
    with pytest.raises(DuplicateRequest):
        book.find(ID, b"other")
    stream.append(finished())
    book.closed(stream)
    assert book.find(ID, b"f") is stream, "a finished answer is replayed"
    assert book.running() == []


async def test_a_failed_request_may_be_tried_again_under_its_id() -> None:
    book, stream = StreamBook(), stream_of()
    book.open(stream)
    stream.fail(FAILED)
    book.closed(stream)
    assert book.find(ID, b"f") is None
    again = stream_of()
    book.open(again)
    assert book.find(ID, b"f") is again


async def test_finished_streams_are_bounded_in_number_and_in_bytes() -> None:
    sample = stream_of()
    for position in range(4):
        sample.append(token(position))
    sample.append(finished())
    book = StreamBook(max_finished=3, max_finished_bytes=int(2.5 * sample.num_bytes))
    for number in range(20):
        stream = stream_of(request_id=RequestId(f"r{number}"))
        for position in range(4):
            stream.append(token(position))
        stream.append(finished())
        book.open(stream)
        book.closed(stream)
        assert book.num_finished_bytes <= 2.5 * sample.num_bytes
    kept = [number for number in range(20) if book.get(RequestId(f"r{number}"))]
    assert kept == [18, 19]
    large = stream_of(request_id=RequestId("large"))
    for position in range(13):
        large.append(token(position))
    large.append(finished())
    book.open(large)
    book.closed(large)
    assert book.get(RequestId("large")) is None


async def test_a_refused_request_leaves_nothing() -> None:
    book = StreamBook()
    book.open(stream_of())
    book.discard(ID)
    assert book.get(ID) is None
    assert book.find(ID, b"other") is None


async def test_a_reader_who_was_away_for_long_gets_messages_of_bounded_size() -> None:
    stream = stream_of()
    for position in range(1000):
        stream.append(token(position))
    stream.append(finished())
    got: list[list[Emission]] = []
    async with asyncio.timeout(PATIENCE_S), aclosing(stream.follow(stream.take_over())) as batches:
        async for batch in batches:
            got.append(batch)
    starts = range(0, 1000, 128)
    assert got[:-1] == [[tokens(start, start + 128)] for start in starts[:-1]]
    assert got[-1] == [tokens(starts[-1], 1000), finished()]


async def test_who_waits_for_a_beginning_is_woken_by_it_and_loses_nothing() -> None:
    stream = stream_of()
    reader = stream.take_over()
    waiting = asyncio.create_task(stream.has_begun(PATIENCE_S))
    await asyncio.sleep(0)
    stream.append(token(0))
    assert await asyncio.wait_for(waiting, PATIENCE_S)
    assert await stream.has_begun(0.0)
    stream.append(finished())
    assert await all_of(stream, reader) == [token(0), finished()]


async def test_who_waits_for_a_beginning_does_not_wait_for_long_nor_for_what_never_comes() -> None:
    stream = stream_of()
    assert not await asyncio.wait_for(stream.has_begun(0.0), PATIENCE_S)
    waiting = asyncio.create_task(stream.has_begun(2 * PATIENCE_S))
    await asyncio.sleep(0)
    stream.fail(FAILED)
    assert not await asyncio.wait_for(waiting, PATIENCE_S)
    assert not await asyncio.wait_for(stream.has_begun(2 * PATIENCE_S), PATIENCE_S)


async def test_who_is_sent_away_waits_for_no_beginning() -> None:
    stream = stream_of()
    stream.take_over()
    waiting = asyncio.create_task(stream.has_begun(2 * PATIENCE_S))
    await asyncio.sleep(0)
    second = stream.take_over()
    assert not await asyncio.wait_for(waiting, PATIENCE_S)
    stream.append(token(0))
    stream.append(finished())
    assert await all_of(stream, second) == [token(0), finished()]


def book_with(stream: RequestStream, num_tokens: int) -> StreamBook:
    """The stream may take as much memory as so many tokens."""
    sample = stream_of()
    sample.append(token(0))
    book = StreamBook(max_stream_bytes=num_tokens * sample.num_bytes)
    book.open(stream)
    return book


async def test_a_long_answer_that_is_read_takes_bounded_memory_and_arrives_whole() -> None:
    stream = stream_of()
    book = book_with(stream, 64)
    reading = asyncio.create_task(all_of(stream, stream.take_over()))
    for number in range(2000):
        stream.append(token(number))
        # One emission above the limit at most.
        assert stream.num_bytes <= 65 / 64 * stream.max_bytes
        if number % 10 == 0:
            await asyncio.sleep(0)
    stream.append(finished())
    assert book.overfull == []
    got = await reading
    ids = [i for each in got[:-1] if isinstance(each, EmitTokens) for i in each.tokens.token_ids]
    assert ids == list(range(2000))
    # Nearly all of the limit is kept for callers that come back.
    assert stream.can_serve((1945,))
    assert not stream.can_serve((1900,))


async def test_a_reader_that_leaves_too_much_unread_is_told_of_once_and_nothing_is_kept() -> None:
    stream = stream_of()
    book = book_with(stream, 64)
    reader = stream.take_over()
    batches = stream.follow(reader)
    stream.append(token(0))
    assert await anext(batches) == [token(0)]
    # It is writing that one, and the connection takes no more.
    for number in range(1, 66):
        stream.append(token(number))
    assert book.overfull == []
    for number in range(66, 70):
        stream.append(token(number))
    assert book.overfull == [stream]
    failed = EmitFailed(ID, ReaderTooSlow(stream.max_bytes), gpu_work_spent=True)
    stream.fail(failed)
    assert stream.num_bytes == 0
    assert await anext(batches, None) is None
    assert stream.failure is failed


async def test_who_comes_back_has_time_to_read_again_what_is_there() -> None:
    stream = stream_of()
    book = book_with(stream, 64)
    stream.take_over()
    for number in range(64):
        stream.append(token(number))
    reader = stream.take_over()
    for number in range(64, 129):
        stream.append(token(number))
    assert book.overfull == []
    reading = asyncio.create_task(all_of(stream, reader))
    await asyncio.sleep(0)
    stream.append(token(129))
    stream.append(finished())
    assert await reading == [tokens(0, 128), tokens(128, 130), finished()]
    # Only as much again, however often it comes.
    for number in range(130, 300):
        stream.take_over()
        stream.append(token(number))
    assert book.overfull == [stream]
