"""Performs what the core wants: commands to links, questions to the ledger, tokens to streams."""

import asyncio
from collections.abc import Callable
from typing import assert_never

from router.core import RouterCore
from router.events import (
    Action,
    EmitFailed,
    EmitFinished,
    EmitPromptLogprobs,
    EmitTokens,
    Event,
    Extend,
    IntroducePeer,
    ReaderFellBehind,
    ReleaseHolding,
    RequestArrived,
    Reserve,
    SendCommand,
    TimeReached,
    TransferHolding,
    WakeAt,
)
from router.ledger_client import LedgerAction
from router.measure import record_failed, record_finished
from router.stream_log import Emission
from router.streams import StreamBook
from router.worker_link import WorkerLink
from runtime.clock import Clock
from runtime.logging import get_logger
from runtime.metrics import Metrics
from scheduling.errors import ReaderTooSlow, TandemError
from scheduling.ids import WorkerId

log = get_logger()


class Dispatcher:
    """The one place where the core is called. Used from the event loop only, never re-entered."""

    def __init__(
        self, core: RouterCore, streams: StreamBook, metrics: Metrics, clock: Clock
    ) -> None:
        self.link_by_worker: dict[WorkerId, WorkerLink] = {}
        self.ask_ledger: Callable[[LedgerAction], None] = _no_ledger
        # Called once when the core itself fails: nothing it says after that can be trusted.
        self.on_defect: Callable[[], None] = lambda: None
        # Told of every event after the core has taken it in, with what came of it.
        self.on_event: Callable[[float, Event, list[Action] | Exception], None] | None = None
        self._core = core
        self._streams = streams
        self._metrics = metrics
        self._clock = clock
        self._wake: asyncio.TimerHandle | None = None
        self._is_making_room = False
        # Bound once: that costs more than a line which is not written.
        self._log = log.bind()

    def apply(self, event: Event) -> None:
        """Let the core take an event in, and begin everything that follows from it.

        Raises: TandemError where an arriving request is refused.
        """
        now = self._clock.now()
        try:
            actions = self._core.handle(event, now)
        except TandemError as error:
            self._tell(now, event, error)
            if not isinstance(event, RequestArrived):
                log.exception("event_refused", kind=type(event).__name__)
                self.on_defect()
            raise
        except Exception as error:
            self._tell(now, event, error)
            log.exception("core_failed", kind=type(event).__name__)
            self.on_defect()
            raise
        self._tell(now, event, actions)
        for action in actions:
            if type(action) is EmitTokens:  # nearly all of them
                stream = self._streams.get(action.request_id)
                if stream is not None:
                    stream.append(action)
            else:
                self._perform(action)
        if self._streams.overfull:
            self._end_slow_readers()
        if self._streams.memory.is_too_full and not self._is_making_room:
            self._make_room()

    def _tell(self, now: float, event: Event, result: list[Action] | Exception) -> None:
        if self.on_event is not None:
            self.on_event(now, event, result)

    def _perform(self, action: Action) -> None:
        match action:
            case SendCommand(worker_id, command):
                link = self.link_by_worker.get(worker_id)
                if link is not None:
                    link.send(command)
            case IntroducePeer(worker_id, export):
                link = self.link_by_worker.get(worker_id)
                if link is not None:
                    link.send(export)
            case Reserve() | Extend() | TransferHolding() | ReleaseHolding():
                self.ask_ledger(action)
            case EmitPromptLogprobs() | EmitTokens() | EmitFinished():
                self._emit(action)
            case EmitFailed():
                self._fail(action)
            case WakeAt(at_s):
                self._wake_at(at_s)
            case _:
                assert_never(action)

    def _emit(self, emission: Emission) -> None:
        stream = self._streams.get(emission.request_id)
        if stream is None:
            return
        stream.append(emission)
        if isinstance(emission, EmitFinished):
            record_finished(self._metrics, emission, stream.info.request_class)
            self._metrics.prefix_looked_up(
                stream.info.num_prompt_tokens, emission.num_cached_tokens
            )
            self._log.info(
                "request_finished",
                request_id=emission.request_id,
                index=emission.index,
                finish_reason=emission.finish_reason,
                num_output_tokens=emission.num_output_tokens,
                ttft_ms=round(emission.timings.ttft_s * 1e3, 1),
                total_ms=round(emission.timings.total_s * 1e3, 1),
            )
            if stream.is_over:
                self._streams.closed(stream)

    def _fail(self, failure: EmitFailed) -> None:
        code = failure.error.code
        log.info("request_failed", request_id=failure.request_id, code=code)
        stream = self._streams.get(failure.request_id)
        if stream is not None:
            record_failed(self._metrics, failure, stream.info.request_class)
            stream.fail(failure)
            self._streams.closed(stream)

    def _end_slow_readers(self) -> None:
        overfull = self._streams.overfull.copy()
        self._streams.overfull.clear()
        for stream in overfull:
            if not stream.is_over:
                self.apply(ReaderFellBehind(stream.request_id, stream.max_bytes))

    def _make_room(self) -> None:
        """All answers together are more than is kept: who left most of one unread loses it."""
        max_bytes = self._streams.memory.max_bytes
        assert max_bytes is not None
        self._is_making_room = True
        try:
            for stream in self._streams.make_room():
                num_bytes, request_id = stream.num_bytes, stream.request_id
                log.warning("slow_reader_ended", request_id=request_id, num_bytes=num_bytes)
                if not stream.is_over:
                    self.apply(ReaderFellBehind(request_id, max_bytes, is_shared=True))
                    continue
                # The core knows it no more: all that was missing is its reader.
                error = ReaderTooSlow(max_bytes, is_shared=True)
                stream.fail(EmitFailed(request_id, error, gpu_work_spent=True))
                if self._streams.get(request_id) is stream:
                    self._streams.discard(request_id)
        finally:
            self._is_making_room = False

    def _wake_at(self, at_s: float) -> None:
        if self._wake is not None:
            self._wake.cancel()
        delay_s = max(0.0, at_s - self._clock.now())
        self._wake = asyncio.get_running_loop().call_later(delay_s, self._wake_up)

    def _wake_up(self) -> None:
        self._wake = None
        self.apply(TimeReached())


def _no_ledger(action: LedgerAction) -> None:
    raise AssertionError("the ledger client is attached before the first event")
