"""Whose turn it is to write: at once in calm, together under load, first and last tokens first."""

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing

import pytest

from router.events import EmitFinished, EmitTokens, PhaseTimings
from router.stream_log import Emission
from router.streams import AcceptedInfo, RequestStream, StreamBook
from router.write_turns import BusyMeter, WriteTurns
from scheduling.ids import RequestId, TaskId
from scheduling.messages import TokensEmitted

PATIENCE_S = 10.0
HOLD_S = 0.02
INFO = AcceptedInfo("model", 3, 5, "standard")
TIMINGS = PhaseTimings(0, 0, 0, 0, 0, 0, None, 0, 0, 0, "", "", "", False, 0, 0)


class Recorder:
    """A writer that notes its turns."""

    def __init__(self, name: str, turns: list[str]) -> None:
        self._name, self._turns = name, turns

    def start_writing(self) -> None:
        self._turns.append(self._name)


def busy_turns(hold_s: float = HOLD_S) -> WriteTurns:
    """Of a router whose event loop uses all of its core."""
    meter = BusyMeter(lambda: 0.0)
    meter.share, meter.look = 1.0, lambda now: None  # type: ignore[method-assign]
    return WriteTurns(hold_s, meter)


def stream_on(turns: WriteTurns) -> RequestStream:
    stream = RequestStream(RequestId("r"), b"f", 1, INFO)
    StreamBook(turns=turns).open(stream)
    return stream


def token(number: int) -> EmitTokens:
    return EmitTokens(RequestId("r"), 0, TokensEmitted(TaskId("r/0~1"), number, (number,), "x"))


def finished() -> EmitFinished:
    return EmitFinished(RequestId("r"), 0, "stop", None, 2, TIMINGS)


def one_by_one(emission: Emission) -> list[Emission]:
    """The tokens that were merged into the emission."""
    if not isinstance(emission, EmitTokens):
        return [emission]
    parts = [token(number) for number in emission.tokens.token_ids]
    assert emission.tokens.first_token_index == emission.tokens.token_ids[0]
    assert emission.tokens.text == "".join(part.tokens.text for part in parts)
    return [*parts]


async def batches_of(stream: RequestStream, pause: Callable[[], int]) -> list[list[Emission]]:
    """Follow to the end; each write takes as many turns of the loop as `pause` says."""
    got: list[list[Emission]] = []
    async with (
        asyncio.timeout(PATIENCE_S),
        aclosing(stream.follow(stream.take_over())) as batches,
    ):
        async for batch in batches:
            got.append([part for emission in batch for part in one_by_one(emission)])
            for _ in range(pause()):
                await asyncio.sleep(0)
    return got


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not is_so():  # noqa: ASYNC110 - callbacks run meanwhile
            await asyncio.sleep(0)


async def test_in_calm_everybody_writes_in_the_next_turn_of_the_loop() -> None:
    turns: list[str] = []
    WriteTurns(HOLD_S, BusyMeter(lambda: 0.0)).ask(Recorder("a", turns), is_urgent=False)
    await asyncio.sleep(0)
    assert turns == ["a"]


async def test_one_turn_of_the_loop_starts_few_writes_and_the_longest_waiting_first() -> None:
    turns: list[str] = []
    book = WriteTurns()
    for number in range(100):
        book.ask(Recorder(str(number), turns), is_urgent=False)
    book.ask(Recorder("urgent", turns), is_urgent=True)
    await asyncio.sleep(0)
    assert len(turns) == 32
    await until(lambda: len(turns) == 101)
    assert turns == ["urgent", *map(str, range(100))]


async def test_a_busy_router_holds_tokens_back_together_and_no_longer_than_allowed() -> None:
    turns: list[str] = []
    book, loop = busy_turns(), asyncio.get_running_loop()
    began_at_s = loop.time()
    book.ask(Recorder("a", turns), is_urgent=False)
    book.ask(Recorder("b", turns), is_urgent=False)
    await asyncio.sleep(0)
    assert turns == []
    # Set for the same instant or a later one, so it comes after what was held.
    limit = asyncio.Event()
    loop.call_at(began_at_s + 2 * HOLD_S, limit.set)
    await asyncio.wait_for(limit.wait(), PATIENCE_S)
    assert turns == ["a", "b"]


async def test_an_urgent_write_does_not_wait_for_a_busy_router() -> None:
    turns: list[str] = []
    book = busy_turns(hold_s=PATIENCE_S)
    book.ask(Recorder("held", turns), is_urgent=False)
    book.ask(Recorder("first token", turns), is_urgent=True)
    await asyncio.sleep(0)
    assert turns == ["first token"]


async def test_the_first_and_the_last_token_of_an_answer_are_never_held_back() -> None:
    stream = stream_on(busy_turns(hold_s=PATIENCE_S / 2))
    reading = asyncio.create_task(batches_of(stream, lambda: 0))
    await asyncio.sleep(0)
    stream.append(token(0))
    # In turns of the loop, not in seconds: no timer is involved.
    for _ in range(10):
        await asyncio.sleep(0)
    for number in (1, 2, 3):
        stream.append(token(number))
        await asyncio.sleep(0)
    stream.append(finished())
    for _ in range(10):
        await asyncio.sleep(0)
    assert reading.done()
    assert await reading == [[token(0)], [token(1), token(2), token(3), finished()]]


async def test_what_gathers_while_a_write_is_under_way_goes_out_in_one_batch() -> None:
    stream = stream_on(WriteTurns())
    reading = asyncio.create_task(batches_of(stream, lambda: 8))
    await asyncio.sleep(0)
    for number in range(6):
        stream.append(token(number))
        await asyncio.sleep(0)
    stream.append(finished())
    batches = await reading
    assert [emission for batch in batches for emission in batch] == [
        *map(token, range(6)),
        finished(),
    ]
    assert len(batches) <= 3


async def test_a_stream_of_one_token_at_a_time_is_not_gathered_in_calm() -> None:
    stream = stream_on(WriteTurns(HOLD_S, BusyMeter(lambda: 0.0)))
    reading = asyncio.create_task(batches_of(stream, lambda: 0))
    for number in range(5):
        stream.append(token(number))
        for _ in range(5):
            await asyncio.sleep(0)
    stream.append(finished())
    assert [len(batch) for batch in await reading] == [1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("seed", range(8))
async def test_many_streams_at_any_speed_lose_and_reorder_nothing(seed: int) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    turns = busy_turns(hold_s=0.002) if seed % 2 else WriteTurns()
    streams = [stream_on(turns) for _ in range(50)]
    lengths = [dice.randrange(1, 12) for _ in streams]
    reading = [asyncio.create_task(batches_of(s, lambda: dice.randrange(4))) for s in streams]
    for number in range(max(lengths)):
        for stream, length in zip(streams, lengths, strict=True):
            if number < length:
                stream.append(token(number))
            if number == length - 1:
                stream.append(finished())
        for _ in range(dice.randrange(4)):
            await asyncio.sleep(0)
    for task, length in zip(reading, lengths, strict=True):
        got = [emission for batch in await task for emission in batch]
        assert got == [*map(token, range(length)), finished()]


async def test_a_reader_that_left_while_it_waited_holds_nobody_up() -> None:
    turns = WriteTurns()
    gone, stays = stream_on(turns), stream_on(turns)
    leaving = asyncio.create_task(batches_of(gone, lambda: 0))
    reading = asyncio.create_task(batches_of(stays, lambda: 0))
    await asyncio.sleep(0)
    for stream in (gone, stays):
        stream.append(token(0))
    leaving.cancel()
    gone.append(token(1))
    stays.append(finished())
    assert await reading == [[token(0), finished()]]


async def test_someone_who_takes_over_sends_a_waiting_reader_away_and_starts_anew() -> None:
    stream = stream_on(busy_turns(hold_s=PATIENCE_S))
    first = asyncio.create_task(batches_of(stream, lambda: 0))
    await asyncio.sleep(0)
    stream.append(token(0))
    await asyncio.sleep(0)
    stream.append(token(1))
    second = asyncio.create_task(batches_of(stream, lambda: 0))
    await asyncio.sleep(0)
    stream.append(finished())
    got = [emission for batch in await second for emission in batch]
    assert got == [token(0), token(1), finished()]
    assert len(await first) <= 1


def test_the_meter_tells_the_share_of_a_core_and_forgets_a_single_peak() -> None:
    cpu_s = 0.0
    meter = BusyMeter(lambda: cpu_s)
    meter.look(100.0)
    cpu_s = 1.0
    meter.look(101.0)
    assert meter.share == 0.5
    meter.look(101.01)  # too soon to tell
    assert meter.share == 0.5
    cpu_s = 2.0
    meter.look(102.0)
    assert meter.share == 0.75
    for second in range(103, 120):
        meter.look(float(second))
    assert meter.share < 0.001
