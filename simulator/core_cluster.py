"""A whole cluster of cores under virtual time: one router, any workers, a ledger, no I/O.

The router, prefill and decode cores are the product's own. Around them: links with a latency, a
ledger that answers late, copies that take a while, and workers that die or drain.
"""

import heapq
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from cluster.errors import HoldingGone, StaleAttempt
from cluster.ledger import (
    Claim,
    Grant,
    Growth,
    Ledger,
    Release,
    ReserveRequest,
    RouterLife,
    Shares,
    WorkerLife,
)
from decode_worker.core import DecodeCore, DecodeSettings
from prefill_worker.core import PrefillCore, PrefillSettings
from router.core import RouterCore
from router.events import (
    Action,
    EmitFailed,
    EmitFinished,
    EmitPromptLogprobs,
    EmitTokens,
    Event,
    Extend,
    ExtensionAnswered,
    IntroducePeer,
    ReleaseHolding,
    ReportsArrived,
    ReservationAnswered,
    Reserve,
    SendCommand,
    TimeReached,
    TransferHolding,
    WakeAt,
    WorkerConnected,
    WorkerLost,
)
from scheduling.ids import Incarnation, RequestId, RouterId, WorkerId
from scheduling.messages import PROTOCOL_VERSION, Command, KvExport, Report, WorkerHello
from scheduling.policy import GROWTH_RESERVE, growth_reserve_blocks
from scheduling.worker_events import (
    AwaitKv,
    CancelPush,
    CommandArrived,
    DropSequence,
    ExpectKv,
    ExtendSequence,
    KvArrived,
    LoadSequence,
    Push,
    PushFinished,
    QuarantineCleared,
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
from simulator.simulated_worker import SimulatedSequence, SimulatedWorker


class CoreCluster:
    """Events in time order; every delay is drawn from one seeded generator."""

    def __init__(
        self,
        router: RouterCore,
        ledger: Ledger,
        rng: random.Random,
        block_size: int = 4,
        num_swap_blocks: int = 0,
        max_num_seqs: int = 4,
        growth_reserve: float = GROWTH_RESERVE,
    ) -> None:
        self.router = router
        self.ledger = ledger
        self.now = 0.0
        self.tokens: dict[tuple[RequestId, int], list[int]] = {}
        self.finished: dict[tuple[RequestId, int], EmitFinished] = {}
        self.failed: dict[RequestId, EmitFailed] = {}
        self.worker_by_id: dict[WorkerId, SimulatedWorker] = {}
        self._rng = rng
        self._block_size = block_size
        # Of each decode worker.
        self._num_swap_blocks = num_swap_blocks
        self._max_num_seqs = max_num_seqs
        # Share of each decode worker's pool.
        self._growth_reserve = growth_reserve
        self._life = RouterLife(RouterId("router-0"), Incarnation(1))
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._lives = count(1)
        self._link_free_at_s: dict[object, float] = {}
        # Memory outlives its process for whoever has it mapped: a copy there still succeeds.
        self._dead_lives: dict[tuple[WorkerId, Incarnation], SimulatedWorker] = {}
        run_now(ledger.renew(self._life, 1e6))

    def add_worker(
        self, worker_id: str, role: str, num_blocks: int, compatibility: str = "same"
    ) -> None:
        """Start a (new life of a) worker and connect it."""
        life = Incarnation(next(self._lives))
        reserve = growth_reserve_blocks(num_blocks, self._growth_reserve)
        hello = WorkerHello(
            protocol_version=PROTOCOL_VERSION,
            worker_id=WorkerId(worker_id),
            incarnation=life,
            role=role,
            num_blocks=num_blocks,
            block_size=self._block_size,
            max_num_seqs=self._max_num_seqs,
            compatibility=compatibility,
            model_fingerprint="model",
            num_growth_blocks=reserve if role == "decode" else 0,
        )
        core: PrefillCore | DecodeCore
        if role == "prefill":
            prefill = PrefillSettings(num_blocks, self._block_size, self._max_num_seqs, 8)
            core = PrefillCore(prefill)
        else:
            export = KvExport("simulated", worker_id, num_blocks, 1, hello.worker_id, life, "here")
            decode = DecodeSettings(
                num_blocks,
                self._block_size,
                self._max_num_seqs,
                num_swap_blocks=self._num_swap_blocks,
            )
            core = DecodeCore(decode, export)
        shares = Shares(growth_reserve=hello.num_growth_blocks)
        run_now(self.ledger.set_capacity(WorkerLife(hello.worker_id, life), num_blocks, shares))
        self.worker_by_id[hello.worker_id] = SimulatedWorker(hello, core, SessionId(life))
        self.tell(WorkerConnected(hello))

    def kill_worker(self, worker_id: str) -> None:
        """The process dies: nothing it still had to say arrives."""
        worker = self.worker_by_id.pop(WorkerId(worker_id))
        worker.is_alive = False
        self._dead_lives[worker.hello.worker_id, worker.hello.incarnation] = worker
        life = WorkerLife(worker.hello.worker_id, worker.hello.incarnation)
        run_now(self.ledger.worker_lost(life))
        self.tell(WorkerLost(worker.hello.worker_id, worker.hello.incarnation))

    def drain_worker(self, worker_id: str) -> None:
        """The process was asked to leave: it tells so, and goes once it has nothing left to do."""
        worker = self.worker_by_id[WorkerId(worker_id)]
        worker.is_draining = True
        self._report(worker, ())

    def tell(self, event: Event) -> None:
        """Let the router take an event in and perform what it wants."""
        for action in self.router.handle(event, self.now):
            self._perform(action)
        self.router.state.legs.check_invariants()

    def at(self, delay_s: float, what: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._agenda, (self.now + delay_s, next(self._order), what))

    def run(self, max_events: int = 1_000_000) -> None:
        """Until nothing is left to happen. Raises: AssertionError when it never ends."""
        for _ in range(max_events):
            if not self._agenda:
                return
            self.now, _, what = heapq.heappop(self._agenda)
            what()
        raise AssertionError(f"still busy after {max_events} events")

    def _perform(self, action: Action) -> None:
        match action:
            case SendCommand(worker_id, command):
                worker = self.worker_by_id.get(worker_id)
                if worker is not None:
                    self._in_order(worker, lambda: self._command(worker, command))
            case IntroducePeer():
                pass  # every pool is at hand here
            case EmitPromptLogprobs():
                pass  # no test here asks for any
            case EmitTokens(request_id, index, tokens):
                self.tokens.setdefault((request_id, index), []).extend(tokens.token_ids)
            case EmitFinished(request_id, index):
                assert (request_id, index) not in self.finished
                self.finished[request_id, index] = action
            case EmitFailed(request_id):
                assert request_id not in self.failed
                self.failed[request_id] = action
            case WakeAt(at_s):
                self.at(max(0.0, at_s - self.now), lambda: self.tell(TimeReached()))
            case Reserve() | Extend() | TransferHolding() | ReleaseHolding():
                self.at(self._rng.uniform(0, 0.002), lambda: self._ask_ledger(action))

    def _ask_ledger(self, action: Reserve | Extend | TransferHolding | ReleaseHolding) -> None:
        match action:
            case Reserve(claim, preferences, num_blocks, share):
                request = ReserveRequest(
                    Claim(claim.task_id, claim.role, claim.number),
                    tuple(WorkerLife(*life) for life in preferences),
                    num_blocks,
                    share,
                )
                outcome = None
                with suppress(StaleAttempt):  # its release was faster: nobody wants it any more
                    outcome = run_now(self.ledger.reserve(self._life, request))
                if isinstance(outcome, Grant):
                    life = outcome.worker
                    self.tell(ReservationAnswered(claim, life.worker_id, life.incarnation))
                else:
                    self.tell(ReservationAnswered(claim, None))
            case Extend(claim, num_blocks, number):
                growth = Growth(Claim(claim.task_id, claim.role, claim.number), num_blocks, number)
                granted = False
                with suppress(HoldingGone, StaleAttempt):  # it went with its worker or its task
                    granted = isinstance(run_now(self.ledger.extend(self._life, growth)), Grant)
                self.tell(ExtensionAnswered(claim, num_blocks, granted))
            case ReleaseHolding(claim):
                release = Release(claim.task_id, claim.number, claim.role)
                run_now(self.ledger.release(self._life, release))
            case TransferHolding(claim):
                with suppress(HoldingGone, StaleAttempt):  # the holding went with its task
                    run_now(self.ledger.transfer(self._life, claim.task_id, claim.number))

    def _in_order(self, link: object, what: Callable[[], None]) -> None:
        key = id(link)
        arrives_at_s = max(self.now + self._rng.uniform(0, 0.003), self._link_free_at_s.get(key, 0))
        self._link_free_at_s[key] = arrives_at_s
        # Not by `at`: its sum rounds, so two of one instant could change places.
        heapq.heappush(self._agenda, (arrives_at_s, next(self._order), what))

    def _command(self, worker: SimulatedWorker, command: Command) -> None:
        if worker.is_alive:
            self._post(worker, CommandArrived(worker.session_id, command))

    def _post(self, worker: SimulatedWorker, event: WorkerEvent) -> None:
        worker.inbox.append(event)
        self._turn(worker)

    def _turn(self, worker: SimulatedWorker) -> None:
        while worker.inbox and worker.is_alive and not worker.is_stepping:
            self._act(worker, worker.core.handle(worker.inbox.pop(0)))
            worker.core.check_invariants()
        self._step_if_idle(worker)

    def _act(self, worker: SimulatedWorker, actions: list[WorkerAction]) -> None:
        reports: list[Report] = []
        for action in actions:
            match action:
                case SendReport(_, report):
                    reports.append(report)
                case SwapOut() | SwapIn():
                    worker.swap(action)
                case TellPrefixes(changes):
                    worker.untold_prefixes.extend(changes)
                case LoadSequence(start, stop):
                    sequence = SimulatedSequence(
                        start, stop, list(start.token_ids), list(start.block_table)
                    )
                    worker.sequence_by_slot[start.slot] = sequence
                case ExtendSequence(slot, block_ids):
                    worker.sequence_by_slot[slot].blocks.extend(block_ids)
                case DropSequence(slot):
                    del worker.sequence_by_slot[slot]
                case Push():
                    self.at(self._rng.uniform(0, 0.004), partial(self._copy, worker, action))
                case ExpectKv(block_ids, generations):
                    pairs = zip(block_ids, generations, strict=True)
                    worker.expected_generation.update(pairs)
                case AwaitKv(task_id):
                    worker.awaited[task_id] = action
                    self._look(worker)
                case RevokeKv(task_id, block_ids):
                    worker.awaited.pop(task_id, None)
                    for block_id in block_ids:
                        worker.expected_generation.pop(block_id, None)
                    cleared = QuarantineCleared(task_id)
                    self.at(self._rng.uniform(0, 0.002), partial(self._post, worker, cleared))
                case CancelPush():
                    pass
        if reports:
            self._report(worker, tuple(reports))

    def _report(self, worker: SimulatedWorker, reports: tuple[Report, ...]) -> None:
        load = replace(worker.core.load, is_draining=worker.is_draining)
        prefixes = worker.untold_prefixes.take() if worker.untold_prefixes else None
        arrived = ReportsArrived(worker.hello.worker_id, reports, load, prefixes)
        self._in_order(worker.core, lambda: self.tell(arrived) if worker.is_alive else None)

    def _copy(self, worker: SimulatedWorker, push: Push) -> None:
        export = push.target.export
        target = self.worker_by_id.get(export.worker_id)
        if target is None or target.hello.incarnation != export.incarnation:
            is_mapped = self._rng.random() < 0.5
            target = self._dead_lives[export.worker_id, export.incarnation] if is_mapped else None
        error = None
        if target is None:
            error = "peer gone"
        else:
            end = push.first_index + len(push.block_ids)
            for source, block, generation in zip(
                push.block_ids,
                push.target.block_ids[push.first_index : end],
                push.target.generations[push.first_index : end],
                strict=True,
            ):
                if target.expected_generation.get(block) != generation:
                    error = "stale generation"
                    break
                for offset in range(self._block_size):
                    target.kv[block, offset] = worker.kv.get((source, offset), ())
                target.arrived_generation[block] = generation
            self._look(target)
        num_blocks = 0 if error else len(push.block_ids)
        self._post(worker, PushFinished(push.task_id, num_blocks, num_blocks, 0.0, error))

    def _look(self, worker: SimulatedWorker) -> None:
        if not worker.is_alive:
            return
        for task_id, awaited in list(worker.awaited.items()):
            pairs = zip(awaited.block_ids, awaited.generations, strict=True)
            if all(worker.arrived_generation.get(b) == g for b, g in pairs):
                del worker.awaited[task_id]
                self.at(0.0, partial(self._post, worker, KvArrived(task_id)))

    def _step_if_idle(self, worker: SimulatedWorker) -> None:
        if worker.is_stepping or not worker.is_alive:
            return
        can_compute = worker.core.can_compute
        actions, plan = worker.core.plan()
        assert can_compute or plan is None
        self._act(worker, actions)
        if plan is None:
            return
        worker.is_stepping = True
        self.at(self._rng.uniform(0.001, 0.01), lambda: self._finish_step(worker))
        worker.outputs = worker.compute(plan.chunks)

    def _finish_step(self, worker: SimulatedWorker) -> None:
        worker.is_stepping = False
        worker.inbox.insert(0, StepFinished(worker.outputs))
        self._turn(worker)


def run_now(operation: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never really waits: the in-memory ledger's."""
    try:
        operation.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("an in-memory operation waited")
