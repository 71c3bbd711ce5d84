"""The engine thread: events in, one iteration after another, reports out.

It owns the core and the runner. It never waits for the event loop: events come through a queue,
reports leave through a callback that must not block. It waits when there is nothing to compute, or
when other engines of the machine have the cores, and then for the next event or the next look.
"""

import logging
import queue
import threading
from collections.abc import Callable
from typing import Protocol, assert_never

from engine.runner import InvalidSequence, RankLost, Runner
from runtime.clock import Clock, MonotonicClock
from runtime.logging import get_logger
from scheduling.batch_time import shape_of_plan
from scheduling.messages import WorkerLoad
from scheduling.prefix_index import PrefixChanges
from scheduling.sampling import StopParams
from scheduling.step import SequenceStart, StepPlan
from scheduling.worker_events import (
    AwaitKv,
    CancelPush,
    DropSequence,
    ExpectKv,
    ExtendSequence,
    KvAction,
    LoadSequence,
    Push,
    ReplaceBlocks,
    RevokeKv,
    SendReport,
    StepFinished,
    SwapIn,
    SwapOut,
    TellPrefixes,
    WorkerAction,
    WorkerEvent,
)
from worker.core_sharing import Cores, OwnCores
from worker.engine_pulse import EnginePulse
from worker.output_text import OutputText
from worker.passes_ahead import MakePasses, failure, refusal

log = get_logger()

# How often awaited KV is looked at while nothing else is to do. Completion is by flags in shared
# memory, which no event announces.
_POLL_S = 0.0005
# How often cores that others use are asked for: far shorter than a step, far longer than asking.
_POLL_CORES_S = 0.001


class Core(Protocol):
    """A prefill or decode core."""

    @property
    def load(self) -> WorkerLoad: ...

    @property
    def num_tasks(self) -> int: ...

    @property
    def can_compute(self) -> bool: ...

    def handle(self, event: WorkerEvent) -> list[WorkerAction]: ...

    def plan(self, now: float) -> tuple[list[WorkerAction], StepPlan | None]: ...


class KvSide(Protocol):
    """What moves KV on this worker: pushes on prefill, arrivals on decode."""

    @property
    def is_polling(self) -> bool:
        """Something is awaited that only `poll` can notice."""
        ...

    def perform(self, action: KvAction) -> None: ...

    def poll(self) -> list[WorkerEvent]: ...


# Called on the engine thread with the reports of one iteration; must not block.
ReportSink = Callable[[list[SendReport], WorkerLoad], None]


class EngineLoop:
    """Runs on its own thread between `start` and `stop`."""

    def __init__(
        self,
        core: Core,
        runner: Runner,
        text: OutputText,
        kv: KvSide,
        inbox: "queue.SimpleQueue[WorkerEvent | None]",
        sink: ReportSink,
        prepare_thread: Callable[[], None] = lambda: None,
        cores: Cores | None = None,
        clock: Clock | None = None,
        passes: MakePasses | None = None,
    ) -> None:
        """`passes`: the next one is begun while one runs; None: one after the other."""
        self._core = core
        # The one by which sessions tell when a command came.
        self._clock = clock or MonotonicClock()
        self._cores = cores or OwnCores()
        self._waits_for_cores = False
        self._runner = runner
        self._text = text
        self._kv = kv
        self._sink = sink
        # Settings that a library keeps for each thread.
        self._prepare_thread = prepare_thread
        self._inbox = inbox
        self._reports: list[SendReport] = []
        # Slots of sequences that the engine did not take; the core drops them at once.
        self._refused: set[int] = set()
        self._is_stopping = False
        # Where debug lines are wanted: when the latest pass was planned, and what it holds.
        self._tells_passes = log.is_enabled_for(logging.DEBUG)
        self._computed: tuple[float, StepPlan] | None = None
        self.pulse = EnginePulse()
        self._passes = None if passes is None else passes(self, text, self._clock)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # Set when the thread ended by itself: a defect, the worker cannot go on.
        self.failure: BaseException | None = None
        self.on_failure: Callable[[], None] = lambda: None
        # Called on the engine thread when cached prefixes came or went; must not block.
        self.on_prefixes: Callable[[PrefixChanges], None] = lambda changes: None

    def start(self) -> None:
        """Begin to take events."""
        self._thread.start()

    def post(self, event: WorkerEvent) -> None:
        """Hand an event over, from any thread, without waiting."""
        self._inbox.put(event)

    def stop(self, timeout_s: float) -> bool:
        """End after the present iteration; False when the thread did not end in time."""
        self._is_stopping = True
        self._inbox.put(None)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def num_tasks(self) -> int:
        """Tasks that the core still knows; read from other threads, may be a moment old."""
        return self._core.num_tasks

    def _run(self) -> None:
        try:
            self._prepare_thread()
            has_work = False
            while not self._is_stopping:
                follows_at_once = has_work
                events = self._take_events(has_work)
                self.pulse.begin()
                for event in events:
                    self.perform(self._core.handle(event))
                for event in self._kv.poll():
                    self.perform(self._core.handle(event))
                has_work = self._take_turn()
                self.flush()
                self._tell_pass(follows_at_once)
                self.pulse.end()
            if self._passes is not None:
                self._passes.close()
        except RankLost as error:
            self.failure = error
            log.error("ranks_lost", error=str(error))
            self.on_failure()
        except BaseException as error:
            # A defect in the core or its bookkeeping: nothing after it can be trusted.
            self.failure = error
            log.exception("engine_thread_failed")
            self.on_failure()

    def _take_events(self, has_work: bool) -> list[WorkerEvent]:
        events: list[WorkerEvent] = []
        try:
            if has_work:
                first = self._inbox.get_nowait()
            else:
                first = self._inbox.get(timeout=self._longest_wait_s())
            while first is not None:
                events.append(first)
                first = self._inbox.get_nowait()
        except queue.Empty:
            pass  # nothing, or nothing more, has arrived: the normal case
        return events

    def _longest_wait_s(self) -> float | None:
        if self._kv.is_polling:
            return _POLL_S
        return _POLL_CORES_S if self._waits_for_cores else None

    def _take_turn(self) -> bool:
        # The cores come first, so that the plan holds all that arrived while they were awaited.
        # Others compute while tasks here only wait for KV, or for its way to its end.
        passes = self._passes
        needs_cores = self._core.can_compute or (passes is not None and passes.is_running)
        self._waits_for_cores = needs_cores and not self._cores.begin()
        if self._waits_for_cores:
            return False
        has_work = False
        try:
            has_work = self._iterate() if passes is None else passes.turn()
        finally:
            if needs_cores:
                self._cores.end(has_computed=has_work)
        return has_work

    def _iterate(self) -> bool:
        began_at_s = self._clock.now()
        actions, plan = self._core.plan(began_at_s)
        self.perform(actions)
        if self._refused:
            self.perform(self._core.handle(refusal(self.refused)))
            return True
        if plan is None:
            return False
        self.flush()  # what is known before the step need not wait for it
        self.pulse.begin(plan.num_tokens)
        try:
            result = self._runner.step(plan)
            outputs = self._text.process(result)
        except RankLost:
            raise  # no step can follow
        except Exception as error:
            self.perform(self._core.handle(failure(error, plan)))
            return True
        self.perform(self._core.handle(StepFinished(outputs, result.prompt_logprobs)))
        self.computed(began_at_s, plan)
        return True

    def computed(self, began_at_s: float, plan: StepPlan) -> None:
        """A pass ended well."""
        if self._tells_passes:
            self._computed = began_at_s, plan

    def _tell_pass(self, follows_at_once: bool) -> None:
        """`follows_at_once`: the engine did not wait for anything since the pass before."""
        if self._computed is None:
            return
        (began_at_s, plan), self._computed = self._computed, None
        shape = shape_of_plan(plan)
        log.debug(
            "pass_computed",
            began_at_s=began_at_s,
            ended_at_s=self._clock.now(),
            follows_at_once=follows_at_once,
            num_decode=shape.num_decode,
            decode_context=shape.decode_context,
            num_prompt_tokens=shape.num_prompt_tokens,
            prompt_attention=shape.prompt_attention,
        )

    @property
    def refused(self) -> tuple[int, ...]:
        """Slots of sequences that the engine did not take."""
        return tuple(self._refused)

    def perform(self, actions: list[WorkerAction]) -> None:
        """What the core wants; on the engine thread only."""
        for action in actions:
            match action:
                case SendReport():
                    self._reports.append(action)
                case TellPrefixes(changes):
                    self.on_prefixes(changes)
                case LoadSequence(start, stop):
                    self._load(start, stop)
                case ExtendSequence(slot, block_ids):
                    self._runner.extend_blocks(slot, block_ids)
                case ReplaceBlocks(slot, first_index, block_ids):
                    self._runner.replace_blocks(slot, first_index, block_ids)
                case DropSequence(slot):
                    if slot in self._refused:
                        self._refused.remove(slot)
                        continue
                    self._runner.remove(slot)
                    self._text.drop(slot)
                case (
                    Push()
                    | CancelPush()
                    | ExpectKv()
                    | AwaitKv()
                    | RevokeKv()
                    | SwapOut()
                    | SwapIn()
                ):
                    self._kv.perform(action)
                case _:
                    assert_never(action)

    def _load(self, start: SequenceStart, stop: StopParams) -> None:
        try:
            self._runner.add(start)
        except InvalidSequence as error:
            # A router sent what no model can compute: its task fails, not this worker.
            log.error("sequence_refused", error=str(error))
            self._refused.add(start.slot)
            return
        self._text.load(start, stop)

    def flush(self) -> None:
        """Send the reports so far; on the engine thread only."""
        if self._reports:
            reports, self._reports = self._reports, []
            self._sink(reports, self._core.load)
