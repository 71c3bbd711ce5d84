"""What a request has produced: followed live, late, again, or by someone else."""

import asyncio
from contextlib import aclosing

import pytest

from router.events import EmitFailed, EmitFinished, EmitTokens, PhaseTimings
from router.stream_log import Emission
from router.streams import AcceptedInfo, RequestStream, StreamBook
from scheduling.errors import DuplicateRequest, RequestCancelled
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
