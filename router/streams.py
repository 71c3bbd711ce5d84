"""What each request has produced, for whoever follows it: now, late, or again.

A stream is a log with readers: the router appends, a reader takes everything since its last look
in one message. So a slow client costs its own request's tokens and nobody's time, and a repeated
call with the same id and content replays the answer instead of computing it twice. A log that grows
too large loses what was sent first; where its reader leaves too much unread, the request ends.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from router.events import EmitFailed, EmitFinished, EmitPromptLogprobs, EmitTokens
from router.prompt_room import Hold
from router.stream_log import Emission, Starts, StreamLog
from router.stream_memory import StreamMemory
from router.write_turns import WriteTurns
from scheduling.errors import BeginningForgotten, DuplicateRequest, ReaderTooSlow
from scheduling.ids import RequestId

# Whether a reader has asked for its turn to write.
_NOT_ASKED, _ASKED, _ASKED_URGENTLY = 0, 1, 2
# Emissions in one message: with all logprobs, 64 KiB. A reader who was away for long gets several.
_MAX_BATCH = 128
# Of a log without end; of it so large a part is dropped at a time.
_MAX_BYTES, _DROPPED_FRACTION = 32 * 1024 * 1024, 1 / 16


@dataclass(frozen=True, slots=True)
class AcceptedInfo:
    """What the first message of a stream says."""

    model: str
    num_prompt_tokens: int
    seed: int
    request_class: str
    max_tokens: int = 0


class RequestStream:
    """The log of one request, of `max_bytes` and one emission; twice that after a take-over."""

    def __init__(
        self,
        request_id: RequestId,
        fingerprint: bytes,
        num_choices: int,
        info: AcceptedInfo,
        starts: Starts = (),
    ) -> None:
        self.request_id = request_id
        self.fingerprint = fingerprint
        self.info = info
        self.failure: EmitFailed | None = None
        # Room that its callers have for the prompt; given back when the stream is over.
        self.holds: set[Hold] = set()
        # Shared by all streams of a router; by itself, a stream waits for nobody.
        self.turns = WriteTurns()
        self.max_bytes = _MAX_BYTES
        # What this and all other streams take; by itself, it is bounded by its own limit only.
        self.memory: StreamMemory[RequestStream] = StreamMemory()
        # Streams whose reader leaves too much unread; whoever appends ends their requests.
        self.overfull: list[RequestStream] = []
        # Another router may have sent the tokens before.
        self._log = StreamLog(request_id, starts)
        self._num_choices = num_choices
        self._num_open_choices = num_choices - starts.count(None)
        self._reader = 0
        # Calls that took over and have not left yet, and whether others may still find it.
        self._num_readers = 0
        self._is_known = False
        # Emissions in the log that the present reader has taken.
        self._num_taken = 0
        # What the log held when it came: it is to be read again first.
        self._num_bytes_found = 0
        # What the reader waits on; None while it writes, or where there is none.
        self._turn: asyncio.Future[None] | None = None
        self._asked = _NOT_ASKED

    @property
    def is_over(self) -> bool:
        """Nothing more will be appended."""
        return self.failure is not None or self._num_open_choices == 0

    @property
    def num_bytes(self) -> int:
        """Memory that the log takes, as an upper bound."""
        return self._log.num_bytes

    @property
    def has_readers(self) -> bool:
        """Whether a call holds it, so that to forget it frees nothing."""
        return self._num_readers > 0

    @property
    def forgotten(self) -> BeginningForgotten | None:
        """Why nobody can have the answers from their first token; None where one can."""
        if not self._log.num_dropped:
            return None
        begins = {index: self._log.begins.get(index, 0) for index in range(self._num_choices)}
        return BeginningForgotten(self.request_id, begins)

    def can_serve(self, starts: Starts) -> bool:
        """Whether a caller who has so many tokens of each answer gets all others from the log."""
        return self._log.can_serve(starts)

    def append(self, emission: Emission) -> None:
        """Log what the core emitted; the reader takes it when its turn comes."""
        # Before it is there: nobody could have taken it.
        if self._log.num_bytes > self.max_bytes:
            self._make_room()
        num_bytes = self._log.num_bytes
        self._log.append(emission)
        self.memory.changed(self, self._log.num_bytes - num_bytes)
        if type(emission) is EmitFinished:
            self._num_open_choices -= 1
            self._give_room_back()
        if self._turn is not None:
            self._ask()

    def fail(self, failure: EmitFailed) -> None:
        """End with an error."""
        self.failure = failure
        if isinstance(failure.error, ReaderTooSlow):
            self.memory.changed(self, -self._log.num_bytes)
            self._log.clear()  # it would stay for as long as the reader stands still
            self._num_taken = 0
        self._give_room_back()
        self.start_writing()

    def take_over(self) -> int:
        """Become the reader, until `leave`; an earlier one is sent away."""
        self._reader += 1
        self._num_readers += 1
        self._num_taken = 0
        self._num_bytes_found = min(self._log.num_bytes, self.max_bytes)
        self.start_writing()
        return self._reader

    def leave(self) -> None:
        """A call that took over has ended."""
        self._num_readers -= 1
        self._let_go()

    def found_by_others(self, is_known: bool) -> None:
        """Whether further calls may take over."""
        self._is_known = is_known
        if is_known:
            self.memory.count(self)
        self._let_go()

    def is_reader(self, reader: int) -> bool:
        """Whether nobody took over since."""
        return self._reader == reader

    async def has_begun(self, patience_s: float) -> bool:
        """Whether the present reader has something to take, now or soon."""
        if not len(self._log) and not self.is_over:
            loop = asyncio.get_running_loop()
            timer = loop.call_later(patience_s, self.start_writing)
            try:
                await self._my_turn()
            finally:
                timer.cancel()
        return len(self._log) > 0

    async def follow(
        self, reader: int, starts: Starts = ()
    ) -> AsyncGenerator[list[Emission], None]:
        """Everything, in batches; ends with the stream or when taken over.

        What a caller has who gives `starts` is left out, as far as it is a whole beginning.
        """
        is_my_turn = True
        passed = _Passed(self._log, starts) if starts else None
        while self.is_reader(reader):
            position = self._num_taken
            if is_my_turn and position < len(self._log):
                end = self._batch_end(position)
                self._num_taken = end
                if passed is None:
                    batch = self._log.merged(position, end)
                else:
                    entries = self._log.between(position, end)
                    batch = [emission for emission in entries if not passed.covers(emission)]
                yield batch
                is_my_turn = False
            elif self.is_over and position == len(self._log):
                return
            else:
                # Always ends: by a token, by the deadline of the request, or by a take-over.
                await self._my_turn()
                is_my_turn = True

    def start_writing(self) -> None:
        """The reader's turn has come."""
        turn, self._turn, self._asked = self._turn, None, _NOT_ASKED
        if turn is not None and not turn.done():
            turn.set_result(None)

    def drop_sent(self, num_left_bytes: int) -> None:
        """Let go of what the present reader was sent, oldest first, until so much is left."""
        num_bytes = self._log.num_bytes
        self._num_taken -= self._log.drop(self._num_taken, num_left_bytes)
        self.memory.changed(self, self._log.num_bytes - num_bytes)

    def _let_go(self) -> None:
        if not self._is_known and not self._num_readers:
            self.memory.let_go(self)

    def _make_room(self) -> None:
        """Drop what was sent. A reader that left too much for that has its request ended."""
        self.drop_sent(int(self.max_bytes * (1 - _DROPPED_FRACTION)))
        is_too_much = self._log.num_bytes > self.max_bytes + self._num_bytes_found
        if is_too_much and self not in self.overfull:
            self.overfull.append(self)

    def _give_room_back(self) -> None:
        if self.is_over:
            while self.holds:
                self.holds.pop().release()

    def _batch_end(self, position: int) -> int:
        """As much as makes one message of a size that any client takes."""
        if self._log.is_prompt(position):
            return position + 1  # logprobs of a prompt can be long: one piece at a time
        return min(len(self._log), position + _MAX_BATCH)

    async def _my_turn(self) -> None:
        self._turn = asyncio.get_running_loop().create_future()
        if self._num_taken < len(self._log):
            self._ask()
        await self._turn

    def _ask(self) -> None:
        # Somebody waits for the first token, and the last one ends the call.
        is_first = self._num_taken == 0 and not self._log.num_dropped
        is_urgent = is_first or self.is_over
        wish = _ASKED_URGENTLY if is_urgent else _ASKED
        if wish > self._asked:
            self._asked = wish
            self.turns.ask(self, is_urgent)


class _Passed:
    """What a caller has already. Text cannot be cut at a token, so emissions are whole or not."""

    def __init__(self, log: StreamLog, starts: Starts) -> None:
        borders = log.borders()
        # None: the caller has the whole answer. An answer whose border is unknown is sent whole.
        self._starts: dict[int, int | None] = {
            index: start
            for index, start in enumerate(starts)
            if start is None or (index, start) in borders
        }

    def covers(self, emission: Emission) -> bool:
        """Whether the caller has it."""
        if isinstance(emission, EmitPromptLogprobs):
            return False
        start = self._starts.get(emission.index, 0)
        if start is None:
            return True
        return isinstance(emission, EmitTokens) and _first(emission) < start


def _first(emission: EmitTokens) -> int:
    return emission.tokens.first_token_index


class StreamBook:
    """Streams by request id: the running ones, and the last finished ones for replay."""

    def __init__(
        self,
        max_finished: int = 256,
        max_finished_bytes: int = 64 * 1024 * 1024,
        turns: WriteTurns | None = None,
        max_stream_bytes: int = _MAX_BYTES,
        memory: StreamMemory[RequestStream] | None = None,
    ) -> None:
        # Of all streams together.
        self.memory = memory or StreamMemory()
        self._turns = turns or WriteTurns()
        self._max_stream_bytes = max_stream_bytes
        # Running ones that are to be ended with `ReaderTooSlow`.
        self.overfull: list[RequestStream] = []
        self._stream_by_id: dict[RequestId, RequestStream] = {}
        self._finished: OrderedDict[RequestId, int] = OrderedDict()
        self._max_finished = max_finished
        self._max_finished_bytes = max_finished_bytes
        self.num_finished_bytes = 0

    def find(self, request_id: RequestId, fingerprint: bytes) -> RequestStream | None:
        """The stream of a repeated call, or None for a new id.

        Raises: DuplicateRequest when the id belongs to other content.
        """
        stream = self._stream_by_id.get(request_id)
        if stream is None:
            return None
        if stream.fingerprint != fingerprint:
            raise DuplicateRequest(
                f"request id {request_id!r} belongs to a request with other content; choose "
                "another id"
            )
        if stream.failure is not None:
            self._forget(request_id)  # a failed request may be tried again under its id
            return None
        return stream

    def get(self, request_id: RequestId) -> RequestStream | None:
        """The stream of a known request."""
        return self._stream_by_id.get(request_id)

    def open(self, stream: RequestStream) -> None:
        """A new request was accepted."""
        stream.turns, stream.overfull = self._turns, self.overfull
        stream.max_bytes, stream.memory = self._max_stream_bytes, self.memory
        self._forget(stream.request_id)
        self._stream_by_id[stream.request_id] = stream
        stream.found_by_others(True)

    def closed(self, stream: RequestStream) -> None:
        """Keep a finished stream for a while; the oldest make room."""
        num_bytes = stream.num_bytes
        self.num_finished_bytes -= self._finished.pop(stream.request_id, 0)
        self._finished[stream.request_id] = num_bytes
        self.num_finished_bytes += num_bytes
        while self._finished and (
            len(self._finished) > self._max_finished
            or self.num_finished_bytes > self._max_finished_bytes
        ):
            self._forget(next(iter(self._finished)))

    def discard(self, request_id: RequestId) -> None:
        """A request that was refused leaves nothing behind."""
        self._forget(request_id)

    def running(self) -> list[RequestStream]:
        """Streams that are not over."""
        return [stream for stream in self._stream_by_id.values() if not stream.is_over]

    def make_room(self) -> list[RequestStream]:
        """Where all streams take too much: let go of what can be had again.

        What is left is unread: those of which there is most are to be ended, and returned.
        """
        for request_id in list(self._finished):
            if self.memory.num_bytes <= self.memory.num_wanted_bytes:
                return []
            if not self._stream_by_id[request_id].has_readers:
                self._forget(request_id)
        self.memory.drop_sent()
        return self.memory.largest() if self.memory.is_too_full else []

    def _forget(self, request_id: RequestId) -> None:
        stream = self._stream_by_id.pop(request_id, None)
        if stream is not None:
            stream.found_by_others(False)
        self.num_finished_bytes -= self._finished.pop(request_id, 0)
