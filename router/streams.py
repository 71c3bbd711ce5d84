"""What each request has produced, for whoever follows it: now, late, or again.

A stream is a log with readers: the router appends, a reader takes everything since its last look
in one message. So a slow client costs its own request's tokens and nobody's time, and a repeated
call with the same id and content replays the answer instead of computing it twice.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from router.events import EmitFailed, EmitFinished, EmitTokens
from scheduling.errors import DuplicateRequest
from scheduling.ids import RequestId

Emission = EmitTokens | EmitFinished


@dataclass(frozen=True, slots=True)
class AcceptedInfo:
    """What the first message of a stream says."""

    model: str
    num_prompt_tokens: int
    seed: int
    request_class: str


class RequestStream:
    """The log of one request. Bounded by its n * max_tokens."""

    def __init__(
        self, request_id: RequestId, fingerprint: bytes, num_choices: int, info: AcceptedInfo
    ) -> None:
        self.request_id = request_id
        self.fingerprint = fingerprint
        self.info = info
        self.failure: EmitFailed | None = None
        self._log: list[Emission] = []
        self._num_open_choices = num_choices
        self._changed = asyncio.Event()
        self._reader = 0

    @property
    def is_over(self) -> bool:
        """Nothing more will be appended."""
        return self.failure is not None or self._num_open_choices == 0

    @property
    def num_tokens(self) -> int:
        """Output tokens so far, over all choices."""
        return sum(len(e.tokens.token_ids) for e in self._log if isinstance(e, EmitTokens))

    def append(self, emission: Emission) -> None:
        """Log what the core emitted and wake the reader."""
        self._log.append(emission)
        if isinstance(emission, EmitFinished):
            self._num_open_choices -= 1
        self._wake()

    def fail(self, failure: EmitFailed) -> None:
        """End with an error."""
        self.failure = failure
        self._wake()

    def take_over(self) -> int:
        """Become the reader; an earlier one is sent away."""
        self._reader += 1
        self._wake()
        return self._reader

    def is_reader(self, reader: int) -> bool:
        """Whether nobody took over since."""
        return self._reader == reader

    async def follow(self, reader: int) -> AsyncGenerator[list[Emission], None]:
        """Everything from the beginning, in batches; ends with the stream or when taken over."""
        position = 0
        while self.is_reader(reader):
            changed = self._changed
            if position < len(self._log):
                batch = self._log[position:]
                position = len(self._log)
                yield batch
            elif self.is_over:
                return
            else:
                # Always ends: by a token, by the deadline of the request, or by a take-over.
                await changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class StreamBook:
    """Streams by request id: the running ones, and the last finished ones for replay."""

    def __init__(self, max_finished: int = 256, max_finished_tokens: int = 1_000_000) -> None:
        self._stream_by_id: dict[RequestId, RequestStream] = {}
        self._finished: OrderedDict[RequestId, int] = OrderedDict()
        self._max_finished = max_finished
        self._max_finished_tokens = max_finished_tokens
        self._num_finished_tokens = 0

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
        self._stream_by_id[stream.request_id] = stream

    def closed(self, stream: RequestStream) -> None:
        """Keep a finished stream for a while; the oldest make room."""
        num_tokens = stream.num_tokens
        self._finished[stream.request_id] = num_tokens
        self._num_finished_tokens += num_tokens
        while self._finished and (
            len(self._finished) > self._max_finished
            or self._num_finished_tokens > self._max_finished_tokens
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
        self._num_finished_tokens -= self._finished.pop(request_id, 0)
