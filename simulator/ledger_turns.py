"""What the ledger answers a simulated router; it is in memory, so it answers at once."""

from contextlib import suppress

from cluster.errors import HoldingGone, StaleAttempt
from cluster.ledger import (
    Claim,
    Grant,
    Growth,
    Ledger,
    Release,
    ReserveRequest,
    RouterLife,
    WorkerLife,
)
from router.events import (
    Event,
    Extend,
    ExtensionAnswered,
    ReleaseHolding,
    ReservationAnswered,
    Reserve,
    TransferHolding,
)
from runtime.clock import ManualClock
from scheduling.ids import Incarnation, WorkerId
from simulator.run_now import run_now

LedgerQuestion = Reserve | Extend | TransferHolding | ReleaseHolding

# The ledger remembers which attempts ended; what is long over is forgotten every so often.
_SWEEP_EVERY = 50_000


class LedgerTurns:
    """Asks the ledger on behalf of one life of a router."""

    def __init__(self, ledger: Ledger, life: RouterLife, clock: ManualClock | None = None) -> None:
        self._ledger = ledger
        self._life = life
        # The ledger's; without it, nothing is ever long over.
        self._clock = clock
        self._num_asked = 0
        # Of each life of a worker that was ever preferred: a question names several.
        self._worker_lives: dict[tuple[WorkerId, Incarnation], WorkerLife] = {}

    def answer(self, action: LedgerQuestion, now: float) -> Event | None:
        """What the router is told; None where it awaits no word."""
        self._num_asked += 1
        if self._clock is not None and self._num_asked % _SWEEP_EVERY == 0:
            self._clock.advance(now - self._clock.now())
            run_now(self._ledger.sweep())
        match action:
            case Reserve():
                return self._reserve(action)
            case Extend(claim, num_blocks, number, is_inherited):
                growth = Growth(Claim(claim.task_id, claim.role, claim.number), num_blocks, number)
                granted = False
                with suppress(HoldingGone, StaleAttempt):  # it went with its worker or its task
                    granted = isinstance(run_now(self._ledger.extend(self._life, growth)), Grant)
                return ExtensionAnswered(claim, num_blocks, granted, is_inherited)
            case ReleaseHolding(claim):
                release = Release(claim.task_id, claim.number, claim.role)
                run_now(self._ledger.release(self._life, release))
            case TransferHolding(claim):
                with suppress(HoldingGone, StaleAttempt):  # the holding went with its task
                    run_now(self._ledger.transfer(self._life, claim.task_id, claim.number))
        return None

    def _life_of(self, worker: tuple[WorkerId, Incarnation]) -> WorkerLife:
        life = self._worker_lives.get(worker)
        if life is None:
            life = self._worker_lives[worker] = WorkerLife(*worker)
        return life

    def _reserve(self, action: Reserve) -> Event:
        claim = action.claim
        request = ReserveRequest(
            Claim(claim.task_id, claim.role, claim.number),
            tuple([self._life_of(worker) for worker in action.preferences]),
            action.num_blocks,
            action.share,
        )
        outcome = None
        with suppress(StaleAttempt):  # its release was faster: nobody wants it any more
            outcome = run_now(self._ledger.reserve(self._life, request))
        if not isinstance(outcome, Grant):
            return ReservationAnswered(claim, None)
        return ReservationAnswered(claim, outcome.worker.worker_id, outcome.worker.incarnation)
