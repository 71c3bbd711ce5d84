"""Which worker holds blocks for which task, until the worker itself says that it does not.

A leg outlives its task: a cancelled or failed task is gone at once, its legs stay in this book
until TaskReleased (or the loss of the worker), and only then is the ledger told.
"""

from itertools import count

from router.events import PREFILL_LEG, Action, Claim, ReleaseHolding, Role, SendCommand
from router.fleet import Fleet
from router.sequence import Leg, LegState
from scheduling.ids import TaskId, WorkerId
from scheduling.messages import CancelTask


class LegBook:
    """Every leg that may hold or be promised blocks, and the promises per worker."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._numbers = count(1)
        self._leg_by_key: dict[tuple[TaskId, Role], Leg] = {}

    def next_claim(self, task_id: TaskId, role: Role) -> Claim:
        """A claim with a larger number than all before it."""
        return Claim(task_id, role, next(self._numbers))

    def held(self) -> list[Leg]:
        """Legs that workers hold blocks for, to tell a ledger that forgot them."""
        return [leg for leg in self._leg_by_key.values() if leg.state is not LegState.RESERVING]

    def __len__(self) -> int:
        return len(self._leg_by_key)

    def get(self, task_id: TaskId, role: Role) -> Leg | None:
        """The leg, or None when nothing is held or promised."""
        return self._leg_by_key.get((task_id, role))

    def open(self, leg: Leg) -> None:
        """The ledger is about to be asked; count the promise against the first preference."""
        self._leg_by_key[(leg.task_id, leg.role)] = leg
        self._count(leg, +1)

    def settle(self, leg: Leg, worker_id: WorkerId) -> None:
        """The ledger chose a worker, perhaps not the first preference."""
        view = self._fleet.get(worker_id)
        assert view is not None
        self._count(leg, -1)
        leg.worker_id, leg.incarnation = worker_id, view.hello.incarnation
        leg.state = LegState.HELD
        self._count(leg, +1)

    def grow(self, leg: Leg, num_blocks: int) -> None:
        """A running response got more blocks."""
        self._count(leg, -1)
        leg.num_blocks += num_blocks
        self._count(leg, +1)

    def computed(self, leg: Leg) -> None:
        """The prompt is computed: it is no backlog any more."""
        self._count(leg, -1)
        leg.num_backlog_tokens = 0
        self._count(leg, +1)

    def on_worker(self, worker_id: WorkerId) -> list[Leg]:
        """Legs that the worker has been told of."""
        return [
            leg
            for leg in self._leg_by_key.values()
            if leg.worker_id == worker_id and leg.state is not LegState.RESERVING
        ]

    def abandon(self, leg: Leg, reason: str) -> list[Action]:
        """The task is over or goes on elsewhere: get the blocks back."""
        leg.is_abandoned = True
        if leg.state is not LegState.HELD:
            return []  # the ledger's answer, or the worker's, is still to come
        assert leg.worker_id is not None
        leg.state = LegState.RELEASING
        return [SendCommand(leg.worker_id, CancelTask(leg.task_id, reason))]

    def ending(self, leg: Leg) -> None:
        """The worker ended the task by itself; its TaskReleased follows."""
        leg.is_abandoned = True
        leg.state = LegState.RELEASING

    def close(self, leg: Leg) -> list[Action]:
        """Nothing is held for the leg any more: tell the ledger."""
        self.remove(leg)
        return [ReleaseHolding(leg.claim)]

    def remove(self, leg: Leg) -> None:
        """Forget the leg; removing twice is harmless."""
        if self._leg_by_key.get((leg.task_id, leg.role)) is leg:
            del self._leg_by_key[(leg.task_id, leg.role)]
            self._count(leg, -1)

    def check_invariants(self) -> None:
        """Raise AssertionError unless the promises per worker are the sums over the legs."""
        for view in self._fleet:
            life = (view.hello.worker_id, view.hello.incarnation)
            legs = [
                leg for leg in self._leg_by_key.values() if (leg.worker_id, leg.incarnation) == life
            ]
            assert view.num_promised_blocks == sum(leg.num_blocks for leg in legs)
            assert view.num_backlog_tokens == sum(leg.num_backlog_tokens for leg in legs)

    def _count(self, leg: Leg, sign: int) -> None:
        view = None if leg.worker_id is None else self._fleet.get(leg.worker_id)
        if view is None or view.hello.incarnation != leg.incarnation:
            return
        view.num_promised_blocks += sign * leg.num_blocks
        if leg.role == PREFILL_LEG:
            view.num_backlog_tokens += sign * leg.num_backlog_tokens
