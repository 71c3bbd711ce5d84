"""What each request has produced, for whoever follows it: now, late, or again.

A stream is a log with readers: the router appends, a reader takes everything since its last look
in one message. So a slow client costs its own request's tokens and nobody's time, and a repeated
call with the same id and content replays the answer instead of computing it twice.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from itertools import zip_longest

from router.events import EmitFailed, EmitFinished, EmitPromptLogprobs, EmitTokens
from router.stream_log import Emission, StreamLog
from router.write_turns import WriteTurns
from scheduling.errors import DuplicateRequest
from scheduling.ids import RequestId

# How many tokens of each answer are not in a log, or need not be sent; None for an answer that has
# ended. Empty: all answers from their beginning.
Starts = tuple[int | None, ...]
# Whether a reader has asked for its turn to write.
_NOT_ASKED, _ASKED, _ASKED_URGENTLY = 0, 1, 2
# Emissions in one message: with all logprobs, 64 KiB. A reader who was away for long gets several.
_MAX_BATCH = 128


@dataclass(frozen=True, slots=True)
class AcceptedInfo:
    """What the first message of a stream says."""

    model: str
    num_prompt_tokens: int
    seed: int
    request_class: str
    max_tokens: int = 0


class RequestStream:
    """The log of one request. Bounded by its n * max_tokens, and its prompt where scored."""

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
        # Shared by all streams of a router; by itself, a stream waits for nobody.
        self.turns = WriteTurns()
        self._log = StreamLog(request_id)
        # Where the log of each answer begins: another router may have sent the tokens before.
        self._starts = starts
        self._num_open_choices = num_choices - starts.count(None)
        self._reader = 0
        # Emissions that the present reader has taken.
        self._num_taken = 0
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
        log = self._log
        num_plain_bytes = (_BYTES_PER_EMISSION + _BYTES_PER_TOKEN) * log.num_plain
        return num_plain_bytes + 4 * log.num_plain_chars + sum(map(_num_bytes, log.others))

    def can_serve(self, starts: Starts) -> bool:
        """Whether a caller who has so many tokens of each answer gets all others from the log."""
        return all(
            wanted is None or (own is not None and own <= wanted)
            for own, wanted in zip_longest(self._starts, starts, fillvalue=0)
        )

    def append(self, emission: Emission) -> None:
        """Log what the core emitted; the reader takes it when its turn comes."""
        self._log.append(emission)
        if type(emission) is EmitFinished:
            self._num_open_choices -= 1
        if self._turn is not None:
            self._ask()

    def fail(self, failure: EmitFailed) -> None:
        """End with an error."""
        self.failure = failure
        self.start_writing()

    def take_over(self) -> int:
        """Become the reader; an earlier one is sent away."""
        self._reader += 1
        self._num_taken = 0
        self.start_writing()
        return self._reader

    def is_reader(self, reader: int) -> bool:
        """Whether nobody took over since."""
        return self._reader == reader

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
        is_urgent = self._num_taken == 0 or self.is_over
        wish = _ASKED_URGENTLY if is_urgent else _ASKED
        if wish > self._asked:
            self._asked = wish
            self.turns.ask(self, is_urgent)


class _Passed:
    """What a caller has already. Text cannot be cut at a token, so emissions are whole or not."""

    def __init__(self, log: Iterable[Emission], starts: Starts) -> None:
        borders = {
            (emission.index, border)
            for emission in log
            if isinstance(emission, EmitTokens)
            for border in (_first(emission), _first(emission) + len(emission.tokens.token_ids))
        }
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


# Measured on CPython 3.11, rounded up.
_BYTES_PER_EMISSION, _BYTES_PER_TOKEN = 700, 40
_BYTES_PER_LOGPROB, _BYTES_PER_ALTERNATIVE = 200, 120


def _num_bytes(emission: Emission) -> int:
    match emission:
        case EmitTokens(tokens=tokens):
            # All tokens of a request have equally many alternatives.
            num_top = len(tokens.logprobs[0].top) if tokens.logprobs else 0
            return (
                _BYTES_PER_EMISSION
                + _BYTES_PER_TOKEN * len(tokens.token_ids)
                # Four bytes where one character of the text is a rare one.
                + 4 * len(tokens.text)
                + (_BYTES_PER_LOGPROB + _BYTES_PER_ALTERNATIVE * num_top) * len(tokens.logprobs)
            )
        case EmitPromptLogprobs(logprobs=scored):
            num_numbers = len(scored.logprobs) + 2 * len(scored.top_token_ids)
            return _BYTES_PER_EMISSION + 4 * num_numbers
        case EmitFinished():
            return _BYTES_PER_EMISSION


def _first(emission: EmitTokens) -> int:
    return emission.tokens.first_token_index


class StreamBook:
    """Streams by request id: the running ones, and the last finished ones for replay."""

    def __init__(
        self,
        max_finished: int = 256,
        max_finished_bytes: int = 64 * 1024 * 1024,
        turns: WriteTurns | None = None,
    ) -> None:
        self._turns = turns or WriteTurns()
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
        stream.turns = self._turns
        self._stream_by_id[stream.request_id] = stream

    def closed(self, stream: RequestStream) -> None:
        """Keep a finished stream for a while; the oldest make room."""
        num_bytes = stream.num_bytes
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

    def _forget(self, request_id: RequestId) -> None:
        self._stream_by_id.pop(request_id, None)
        self.num_finished_bytes -= self._finished.pop(request_id, 0)
