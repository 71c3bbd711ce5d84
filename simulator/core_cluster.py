"""A whole cluster of cores under virtual time: one router, any workers, a ledger, no I/O.

The router, prefill and decode cores are the product's own. Around them: links with a latency, a
ledger that answers late, copies that take a while, and workers that die or drain.
"""

import heapq
from array import array
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count

from cluster.ledger import (
    Ledger,
    RouterLife,
    Shares,
    WorkerLife,
)
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
    ReleaseHolding,
    ReportsArrived,
    Reserve,
    SendCommand,
    TimeReached,
    TransferHolding,
    WakeAt,
    WorkerConnected,
    WorkerLost,
)
from router.sequence import Sequence
from runtime.clock import ManualClock
from scheduling.ids import Incarnation, RouterId, TaskId, WorkerId
from scheduling.messages import Command, Report, TokensEmitted, WorkerLoad
from scheduling.worker_events import (
    AwaitKv,
    CancelPush,
    CommandArrived,
    DropSequence,
    ExpectKv,
    ExtendSequence,
    LoadSequence,
    Push,
    ReplaceBlocks,
    RevokeKv,
    SendReport,
    SessionId,
    StepFinished,
    SwapIn,
    SwapOut,
    TellPrefixes,
    WorkerAction,
    WorkerEvent,
)
from simulator.audience import Audience
from simulator.growing_runs import ends_no_run
from simulator.kv_copies import KvCopies
from simulator.ledger_turns import LedgerQuestion, LedgerTurns
from simulator.run_now import run_now
from simulator.simulated_worker import SimulatedEngine, SimulatedWorker
from simulator.step_log import StepRun
from simulator.timing import Timing
from simulator.unheard import is_heard, is_told, num_unheard
from simulator.worker_spec import WorkerSpec

_NO_GAPS: "array[float]" = array("d")


class CoreCluster:
    """Events in time order, as `Timing` has them. The same arguments give the same run."""

    def __init__(
        self,
        router: RouterCore,
        ledger: Ledger,
        timing: Timing,
        audience: Audience,
        ledger_clock: ManualClock | None = None,
    ) -> None:
        self.router = router
        self.ledger = ledger
        self.now = 0.0
        self.worker_by_id: dict[WorkerId, SimulatedWorker] = {}
        # Check every invariant after every event: for tests, it costs more than all else.
        self.is_checking = True
        self._timing = timing
        self._audience = audience
        self._life = RouterLife(RouterId("router-0"), Incarnation(1))
        self._ledger_turns = LedgerTurns(ledger, self._life, ledger_clock)
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._lives = count(1)
        self._link_free_at_s: dict[object, float] = {}
        # Of the tokens in the frame that the router takes in now, by task and first index.
        self._gaps_s: dict[tuple[TaskId, int], array[float]] = {}
        self._copies = KvCopies(self.worker_by_id, timing, self.at, self._post)
        router.state.num_unheard = self._num_unheard
        run_now(ledger.renew(self._life, 1e6))

    def add_worker(self, worker_id: str, spec: WorkerSpec, engine: SimulatedEngine) -> None:
        """Start a (new life of a) worker and connect it."""
        life = Incarnation(next(self._lives))
        hello = spec.hello(WorkerId(worker_id), life)
        core = spec.new_core(hello)
        shares = Shares(growth_reserve=hello.num_growth_blocks)
        book = WorkerLife(hello.worker_id, life)
        run_now(self.ledger.set_capacity(book, hello.num_blocks, shares))
        self.worker_by_id[hello.worker_id] = SimulatedWorker(hello, core, engine, SessionId(life))
        self.tell(WorkerConnected(hello))

    def kill_worker(self, worker_id: str) -> None:
        """The process dies: nothing it still had to say arrives."""
        worker = self.worker_by_id.pop(WorkerId(worker_id))
        worker.is_alive = False
        self._copies.died(worker)
        life = WorkerLife(worker.hello.worker_id, worker.hello.incarnation)
        run_now(self.ledger.worker_lost(life))
        self.tell(WorkerLost(worker.hello.worker_id, worker.hello.incarnation))

    def drain_worker(self, worker_id: str) -> None:
        """The process was asked to leave: it tells so, and goes once it has nothing left to do."""
        worker = self.worker_by_id[WorkerId(worker_id)]
        worker.is_draining, worker.is_load_new = True, False
        self._report(worker, ())

    def tell(self, event: Event) -> None:
        """Let the router take an event in and perform what it wants."""
        for action in self.router.handle(event, self.now):
            self._perform(action)
        if self.is_checking:
            self.router.check_invariants()

    def at(self, delay_s: float, what: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._agenda, (self.now + delay_s, next(self._order), what))

    def run(self, max_events: int = 1_000_000) -> None:
        """Until nothing is left to happen. Raises: AssertionError when it never ends."""
        if not self.run_some(max_events):
            raise AssertionError(f"still busy after {max_events} events")

    def run_some(self, num_events: int) -> bool:
        """So many events at most; True once nothing is left to happen."""
        for _ in range(num_events):
            if not self._agenda:
                return True
            self.now, _, what = heapq.heappop(self._agenda)
            what()
        return not self._agenda

    def _perform(self, action: Action) -> None:
        match action:
            case SendCommand(worker_id, command):
                worker = self.worker_by_id.get(worker_id)
                if worker is not None:
                    self._in_order(worker, partial(self._command, worker, command))
            case EmitTokens(_, _, tokens):
                key = tokens.task_id, tokens.first_token_index
                self._audience.tokens(action, self.now, self._gaps_s.get(key, _NO_GAPS))
            case Reserve() | Extend() | TransferHolding() | ReleaseHolding():
                self.at(self._timing.ledger_s(), partial(self._ask_ledger, action))
            case EmitFinished():
                self._audience.finished(action, self.now)
            case WakeAt(at_s):
                self.at(max(0.0, at_s - self.now), partial(self.tell, TimeReached()))
            case EmitFailed():
                self._audience.failed(action, self.now)
            case IntroducePeer():
                pass  # every pool is at hand here
            case EmitPromptLogprobs():
                pass  # no test here asks for any

    def _ask_ledger(self, action: LedgerQuestion) -> None:
        answer = self._ledger_turns.answer(action, self.now)
        if answer is not None:
            self.tell(answer)

    def _in_order(self, link: object, what: Callable[[], None]) -> None:
        key = id(link)
        arrives_at_s = max(self.now + self._timing.link_s(), self._link_free_at_s.get(key, 0))
        self._link_free_at_s[key] = arrives_at_s
        # Not by `at`: its sum rounds, so two of one instant could change places.
        heapq.heappush(self._agenda, (arrives_at_s, next(self._order), what))

    def _command(self, worker: SimulatedWorker, command: Command) -> None:
        if worker.is_alive:
            self._post(worker, CommandArrived(worker.session_id, command, self.now))

    def _post(self, worker: SimulatedWorker, event: WorkerEvent) -> None:
        run = worker.run
        if run is None:
            worker.inbox.append(event)
            self._turn(worker)
            return
        # As on the engine thread, it is looked at after the step that is computed now.
        num_steps = 1
        if run.num_steps > 1:
            num_steps = run.times.num_steps_begun(self.now - run.begin_s)
        if num_steps < run.num_steps and not worker.inbox and ends_no_run(worker, event):
            self._act(worker, worker.core.handle(event))
            self._await_news(worker, run, num_steps + 1)
            return
        worker.inbox.append(event)
        if num_steps < run.num_steps:
            run.num_steps = num_steps
            self._await_end(worker, run)

    def _turn(self, worker: SimulatedWorker) -> None:
        while worker.inbox and worker.is_alive and worker.run is None:
            self._act(worker, worker.core.handle(worker.inbox.popleft()))
            if self.is_checking:
                worker.core.check_invariants()
        self._step_if_idle(worker)

    def _act(
        self, worker: SimulatedWorker, actions: list[WorkerAction], *, has_frame: bool = False
    ) -> None:
        """`has_frame`: if there were a frame for each step, there would be one now."""
        worker.is_load_new = False
        reports: list[Report] = []
        for action in actions:
            match action:
                case SendReport():  # what comes most often first
                    reports.append(action.report)
                case ExtendSequence(slot, block_ids):
                    worker.engine.extend(slot, block_ids)
                case LoadSequence(start, stop):
                    worker.engine.load(start, stop)
                case DropSequence(slot):
                    worker.engine.drop(slot)
                case SwapOut() | SwapIn():
                    worker.swap(action, self._timing.swap_s(worker.hello, action))
                case TellPrefixes(changes):
                    worker.untold_prefixes.extend(changes)
                case ReplaceBlocks(slot, first_index, block_ids):
                    worker.engine.replace(slot, first_index, block_ids)
                case Push():
                    self._copies.push(worker, action)
                case ExpectKv():
                    self._copies.expect(worker, action)
                case AwaitKv():
                    self._copies.await_all(worker, action)
                case RevokeKv():
                    self._copies.revoke(worker, action)
                case CancelPush():
                    pass
        if reports or (has_frame and self._has_news(worker)):
            self._report(worker, tuple(reports))

    def _load_of(self, worker: SimulatedWorker) -> WorkerLoad:
        if not worker.is_load_new:
            load, worker.is_load_new = worker.core.load, True
            worker.load = replace(load, is_draining=True) if worker.is_draining else load
        return worker.load

    def _has_news(self, worker: SimulatedWorker) -> bool:
        """The router does not know all that it would by the frames of single steps."""
        load, told = self._load_of(worker), worker.told_load
        return bool(worker.untold_prefixes) or (load is not told and load != told)

    def _report(self, worker: SimulatedWorker, reports: tuple[Report, ...]) -> None:
        load = worker.told_load = self._load_of(worker)
        prefixes = worker.untold_prefixes.take() if worker.untold_prefixes else None
        arrived = ReportsArrived(worker.hello.worker_id, reports, load, prefixes)
        gaps_s: dict[tuple[TaskId, int], array[float]] = {}
        for report in reports:
            if type(report) is TokensEmitted and len(report.token_ids) > 1:
                key = report.task_id, report.first_token_index
                gaps_s[key] = worker.log.gaps_s(len(report.token_ids))
                is_told(worker, report)
        self._in_order(worker.core, partial(self._frame_arrives, worker, arrived, gaps_s))

    def _frame_arrives(
        self,
        worker: SimulatedWorker,
        frame: ReportsArrived,
        gaps_s: dict[tuple[TaskId, int], "array[float]"],
    ) -> None:
        if worker.is_alive:
            self._gaps_s = gaps_s
            for (task_id, _), gaps in gaps_s.items():
                is_heard(worker, task_id, len(gaps) + 1)
            self.tell(frame)

    def _num_unheard(self, sequence: Sequence) -> int:
        leg = sequence.decode
        if leg is None or leg.worker_id is None:
            return 0
        worker = self.worker_by_id.get(leg.worker_id)
        return num_unheard(sequence, worker, self.now - self._timing.report_delay_s)

    def _step_if_idle(self, worker: SimulatedWorker) -> None:
        if worker.run is not None or not worker.is_alive:
            return
        can_compute = worker.core.can_compute
        actions, plan = worker.core.plan(self.now)
        assert can_compute or plan is None
        if actions:
            self._act(worker, actions)
        self._load_of(worker)
        if plan is None:
            self._audience.planned(worker, self.now)
            return
        times = self._timing.steps(worker.hello, plan)
        run = StepRun(plan, self.now, self.now + worker.take_wait_s(times), times)
        if plan.counted is None:
            run.outputs = worker.engine.compute(plan, 1)
        else:
            run.num_steps = worker.engine.num_steps_until_end(plan)
        self._audience.planned(worker, self.now)
        worker.run = run
        if run.num_steps > 1 and self._has_news(worker):
            # What the router does not know yet, it would know after one step.
            self._await_news(worker, run, 1)
        self._await_end(worker, run)

    def _await_news(self, worker: SimulatedWorker, run: StepRun, num_steps: int) -> None:
        what: Callable[[], None] = partial(self._tell_news, worker, run, num_steps)
        at_s = run.begin_s + run.times.end_s(num_steps)
        heapq.heappush(self._agenda, (at_s, next(self._order), what))

    def _tell_news(self, worker: SimulatedWorker, run: StepRun, num_steps: int) -> None:
        """So many steps, but not the last one, have ended."""
        if worker.run is run and run.num_steps > num_steps and worker.is_alive:
            self._audience.planned(worker, self.now)
            self._report(worker, ())

    def _await_end(self, worker: SimulatedWorker, run: StepRun) -> None:
        what: Callable[[], None] = partial(self._finish_steps, worker, run, run.num_steps)
        heapq.heappush(self._agenda, (run.end_s, next(self._order), what))

    def _finish_steps(self, worker: SimulatedWorker, run: StepRun, num_steps: int) -> None:
        if num_steps != run.num_steps or not worker.is_alive:
            return  # it ended earlier, or with its worker
        worker.run, outputs = None, run.outputs
        if run.plan.counted is not None:
            outputs = worker.engine.compute(run.plan, num_steps)
            each_s = run.times.each_s(num_steps)
            worker.log.add(self.now, self.now - run.begin_s, each_s, num_steps)
        self._audience.stepped(worker, run)
        actions = worker.core.handle(StepFinished(outputs, num_steps=num_steps))
        self._act(worker, actions, has_frame=run.plan.counted is not None)
        if self.is_checking:
            worker.core.check_invariants()
        self._turn(worker)
