"""Callers that break off, come back and go on elsewhere get each token exactly once."""

import asyncio
import random
from contextlib import aclosing

import pytest

from router.events import EmitFailed, EmitFinished, EmitTokens, PhaseTimings
from router.stream_memory import StreamMemory
from router.streams import AcceptedInfo, RequestStream, StreamBook
from router.wire.generate import emissions_to_proto
from router.write_turns import BusyMeter, WriteTurns
from scheduling.errors import ReaderTooSlow, RequestCancelled
from scheduling.ids import RequestId, TaskId
from scheduling.messages import TokensEmitted
from tandemserve.replay import Replay
from tandemserve.results import Accepted, Delta
from tandemserve.wire import events_from

PATIENCE_S = 20.0
INFO = AcceptedInfo("model", 3, 5, "standard")
TIMINGS = PhaseTimings(0, 0, 0, 0, 0, 0, None, 0, 0, 0, "", "", "", False, 0, 0)


def text_of(number: int) -> str:
    """Of every three tokens one has no text yet, and the next one has it as well."""
    return ("<a>", "", f"<{number - 1}><{number}>")[number % 3]


def turns_of(dice: random.Random) -> WriteTurns:
    meter = BusyMeter(lambda: 0.0)
    meter.share, meter.look = dice.choice([0.0, 0.6, 1.0]), lambda now: None  # type: ignore[method-assign]
    return dice.choice([WriteTurns(), WriteTurns(0.002, meter)])


async def some_turns(dice: random.Random, most: int) -> None:
    for _ in range(dice.randrange(most)):
        await asyncio.sleep(0)


class Conversation:
    """One request, two routers that each may compute it, and its caller."""

    def __init__(
        self,
        number: int,
        dice: random.Random,
        turns: WriteTurns,
        memory: StreamMemory[RequestStream] | None = None,
    ) -> None:
        """`memory`: what all conversations of one router share."""
        self._memory = memory
        self._id = RequestId(f"r{number}")
        self._dice, self._turns = dice, turns
        self._lengths = [dice.randint(1, 60) for _ in range(dice.choice([1, 1, 3]))]
        self._replay = Replay(self._id, len(self._lengths))
        self._received: list[list[int]] = [[] for _ in self._lengths]
        # At each of two routers.
        self._streams: dict[int, RequestStream] = {}
        self._computing: dict[int, asyncio.Task[None]] = {}
        # What a router keeps of the answer: all of it, or so little that readers fall behind.
        self._max_bytes = dice.choice([1 << 20, 20_000, 3_000])
        self.num_too_slow = 0

    async def run(self) -> None:
        dice, replay = self._dice, self._replay
        while not replay.is_complete:
            told = replay.received() if replay.has_news else ()
            starts = tuple(None if is_over else len(ids) for _, ids, is_over in told)
            replay.begin_attempt()
            router = dice.randrange(2)
            stream = self._stream_at(router, starts)
            reader, leaving = stream.take_over(), None
            if dice.random() < 0.3:  # a call that broke is still served for a moment
                leaving = asyncio.create_task(self._read_on(stream, reader, starts))
                await some_turns(dice, 5)
                stream = self._stream_at(router, starts)
                reader = stream.take_over()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._attempt(stream, reader, starts)
                    if leaving is not None:
                        await leaving
            except TimeoutError:
                for computing in self._computing.values():
                    if computing.done():
                        computing.result()
                raise
        for computing in self._computing.values():
            computing.cancel()
        assert self._received == [list(range(length)) for length in self._lengths]
        for choice, length in zip(replay.completion().choices, self._lengths, strict=True):
            assert choice.text == "".join(map(text_of, range(length)))

    def _stream_at(self, router: int, starts: tuple[int | None, ...]) -> RequestStream:
        """What the router has of the request; begun there where it knows nothing that helps."""
        stream = self._streams.get(router)
        if stream is not None and stream.failure is None:
            if stream.can_serve(starts) and self._dice.random() < 0.7:
                return stream
            self._computing[router].cancel()  # the router was lost
            stream.fail(EmitFailed(self._id, RequestCancelled("lost"), gpu_work_spent=True))
        stream = self._streams[router] = RequestStream(
            self._id, b"f", len(self._lengths), INFO, starts
        )
        book = StreamBook(turns=self._turns, max_stream_bytes=self._max_bytes, memory=self._memory)
        book.open(stream)
        self._computing[router] = asyncio.create_task(self._compute(book, stream, starts))
        return stream

    async def _compute(
        self, book: StreamBook, stream: RequestStream, starts: tuple[int | None, ...]
    ) -> None:
        dice = self._dice
        done = [s or 0 for s in starts] or [0] * len(self._lengths)
        open_answers = [i for i in range(len(done)) if not starts or starts[i] is not None]
        while open_answers:
            await some_turns(dice, 4)
            if stream.is_over:  # to make room for others
                self.num_too_slow += 1
                return
            index = dice.choice(open_answers)
            first = done[index]
            end = min(self._lengths[index], first + dice.choice([1, 1, 1, 3]))
            ids = tuple(range(first, end))
            is_last = end == self._lengths[index]
            text, reason = "".join(map(text_of, ids)), "stop" if is_last else None
            tokens = TokensEmitted(TaskId("t"), first, ids, text, finish_reason=reason)
            stream.append(EmitTokens(self._id, index, tokens))
            # Twice the limit for who comes again, and what was not seen before it was there.
            assert stream.num_bytes < 2 * self._max_bytes + 3_000
            self._make_room_for_all(book)
            if stream.failure is not None:
                self.num_too_slow += 1
                return
            if book.overfull:
                error = ReaderTooSlow(self._max_bytes)
                stream.fail(EmitFailed(self._id, error, gpu_work_spent=True))
                self.num_too_slow += 1
                return
            done[index] = end
            if is_last:
                stream.append(EmitFinished(self._id, index, "stop", None, end, TIMINGS))
                open_answers.remove(index)

    def _make_room_for_all(self, book: StreamBook) -> None:
        if book.memory.is_too_full:
            for stream in book.make_room():
                error = ReaderTooSlow(self._max_bytes, is_shared=True)
                stream.fail(EmitFailed(stream.request_id, error, gpu_work_spent=True))
            assert not book.memory.is_too_full
            book.memory.check_invariants()

    async def _attempt(
        self, stream: RequestStream, reader: int, starts: tuple[int | None, ...]
    ) -> None:
        dice = self._dice
        most = dice.choice([None, None, 1, 2, 6])
        joins = dice.random() < 0.5
        self._replay.receive(self._id, Accepted("model", 3, False, 5))
        num_batches = 0
        async with aclosing(stream.follow(reader, starts)) as batches:
            async for batch in batches:
                for response in emissions_to_proto(self._id, batch, INFO, str, joins=joins):
                    for event in events_from(response):
                        news = self._replay.receive(self._id, event)
                        if isinstance(news, Delta):
                            self._received[news.index] += news.token_ids
                    await some_turns(dice, 3)
                num_batches += 1
                if num_batches == most:
                    return  # the connection breaks

    async def _read_on(
        self, stream: RequestStream, reader: int, starts: tuple[int | None, ...]
    ) -> None:
        async with aclosing(stream.follow(reader, starts)) as batches:
            async for _ in batches:
                await some_turns(self._dice, 4)


@pytest.mark.parametrize("seed", range(10))
async def test_any_reading_breaking_off_and_resuming_gives_each_token_once(seed: int) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    turns = turns_of(dice)
    conversations = [Conversation(n, dice, turns) for n in range(dice.choice([1, 5, 40]))]
    await asyncio.gather(*(each.run() for each in conversations))


@pytest.mark.parametrize("seed", range(10))
async def test_the_same_where_all_answers_share_too_little_memory(seed: int) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    turns = turns_of(dice)
    number = dice.choice([5, 40])
    # Of the tokens of each, a few.
    memory: StreamMemory[RequestStream] = StreamMemory(number * dice.choice([4_000, 10_000]))
    conversations = [Conversation(n, dice, turns, memory) for n in range(number)]
    await asyncio.gather(*(each.run() for each in conversations))
    memory.check_invariants()
    print(f"{sum(each.num_too_slow for each in conversations)} times too slow")
