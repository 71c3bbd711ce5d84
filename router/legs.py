"""Which worker holds blocks for which task, until the worker itself says that it does not.

A leg outlives its task: a cancelled or failed task is gone at once, its legs stay in this book
until TaskReleased (or the loss of the worker), and only then is the ledger told.
"""

from itertools import count

from router.events import DECODE_LEG, PREFILL_LEG, Action, Claim, ReleaseHolding, Role, SendCommand
from router.fleet import Fleet
from router.leg import Leg, LegState
from router.worker_view import WorkerView
from scheduling.block_leases import LentPlace
from scheduling.ids import TaskId, WorkerId
from scheduling.messages import CancelTask
from scheduling.prefix_chain import PrefixKey
from scheduling.task_queue import Key


class LegBook:
    """Every leg that may hold or be promised blocks, and the promises per worker."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._numbers = count(1)
        # Order in which workers were given tasks.
        self._turns = count(1)
        self._leg_by_key: dict[tuple[TaskId, Role], Leg] = {}

    def next_claim(self, task_id: TaskId, role: Role) -> Claim:
        """A claim with a larger number than all before it."""
        return Claim(task_id, role, next(self._numbers))

    def held(self) -> list[Leg]:
        """Legs that workers hold blocks for, to tell a ledger that forgot them."""
        return [
            leg
            for leg in self._leg_by_key.values()
            if leg.state is LegState.HELD
            or (leg.state is LegState.RELEASING and leg.num_blocks > 0)
        ]

    def __len__(self) -> int:
        return len(self._leg_by_key)

    def get(self, task_id: TaskId, role: Role) -> Leg | None:
        """The leg, or None when nothing is held or promised."""
        return self._leg_by_key.get((task_id, role))

    def open(self, leg: Leg) -> None:
        """The ledger is about to be asked; count the promise against the first preference."""
        self._leg_by_key[(leg.task_id, leg.role)] = leg
        self._arrive(leg)

    def connected(self, worker_id: WorkerId) -> None:
        """A new view of a worker: in the same life, it may have been asked for since before."""
        for leg in self._leg_by_key.values():
            if leg.worker_id == worker_id and leg.state is LegState.RESERVING:
                self._arrive(leg)

    def settle(self, leg: Leg, worker_id: WorkerId) -> None:
        """The ledger chose a worker, perhaps not the first preference."""
        view = self._fleet.get(worker_id)
        assert view is not None
        leg.state = LegState.HELD
        if (leg.worker_id, leg.incarnation) == (worker_id, view.hello.incarnation):
            return
        self._leave(leg)
        leg.worker_id, leg.incarnation = worker_id, view.hello.incarnation
        self._arrive(leg)

    def grow(self, leg: Leg, num_blocks: int) -> None:
        """The task got more blocks, or gave some back."""
        leg.num_blocks += num_blocks
        self._promise(leg, num_blocks)

    def ask_for_answer(self, leg: Leg, num_blocks: int) -> None:
        """The ledger is about to be asked for the room of an answer that waits in place."""
        self._stage(leg, -1)
        leg.num_asked_blocks = num_blocks
        self._promise(leg, num_blocks)

    def answer_refused(self, leg: Leg) -> None:
        """It has no room for it after all: the answer waits again."""
        self._promise(leg, -leg.num_asked_blocks)
        leg.num_due_blocks, leg.num_asked_blocks = leg.num_asked_blocks, 0
        self._stage(leg, 1)

    def answer_granted(self, leg: Leg) -> None:
        """It has; or the answer needs nothing, and the ledger was not asked."""
        if not leg.num_asked_blocks:
            self._stage(leg, -1)
        leg.num_blocks += leg.num_asked_blocks
        leg.num_due_blocks = leg.num_asked_blocks = 0
        leg.is_staged = leg.has_outgrown = leg.is_place_asked = False
        view = self._view_of(leg)
        if view is not None:
            view.places_changed()

    def stage_again(self, leg: Leg, num_due_blocks: int) -> None:
        """Its answer outgrew its room, and waits in place for so many blocks more."""
        leg.is_staged = leg.has_outgrown = True
        leg.num_due_blocks = num_due_blocks
        self._stage(leg, 1)
        view = self._view_of(leg)
        if view is not None:
            # It lends nothing while it does not run; the worker is no fuller than it was.
            view.places_changed()
            self._fleet.touch(view)

    def inherit(self, leg: Leg, num_blocks: int) -> None:
        """What the task had borrowed is booked for nobody else any more."""
        leg.num_borrowed_blocks -= num_blocks
        self.grow(leg, num_blocks)
        if not leg.num_borrowed_blocks:
            self.return_place(leg)

    def borrow(self, leg: Leg, place: LentPlace) -> None:
        """Its worker is about to be told to begin there."""
        view = self._view_of(leg)
        assert view is not None
        leg.place, leg.num_borrowed_blocks = place, place.num_blocks
        leg.is_place_asked = True
        view.places_by_host.setdefault(place.host_id, {})[leg.task_id] = place

    def return_place(self, leg: Leg) -> None:
        """It borrows nothing any more."""
        place, leg.place, leg.num_borrowed_blocks = leg.place, None, 0
        leg.is_place_asked = False
        view = self._view_of(leg)
        if view is None or place is None:
            return
        guests = view.places_by_host[place.host_id]
        del guests[leg.task_id]
        if not guests:
            del view.places_by_host[place.host_id]

    def computed(self, leg: Leg) -> None:
        """The prompt is computed: it is no backlog any more."""
        view = self._view_of(leg)
        if view is not None:
            view.num_backlog_tokens -= leg.num_backlog_tokens
            view.places_changed()
            self._fleet.touch(view)
        leg.num_backlog_tokens = 0

    def on_worker(self, worker_id: WorkerId) -> list[Leg]:
        """Legs that the worker has been told of."""
        return [
            leg
            for leg in self._leg_by_key.values()
            if leg.worker_id == worker_id and leg.state is not LegState.RESERVING
        ]

    def park(self, leg: Leg, key: Key) -> list[Action]:
        """The worker holds no block for the task any more, only its KV in host memory."""
        view = self._view_of(leg)
        assert view is not None
        self._unreserve(leg)
        self.return_place(leg)
        view.parked.push(leg.task_id, key)
        self._fleet.note_parked(view)
        return [ReleaseHolding(leg.claim)]

    def ask_to_resume(self, leg: Leg, num_blocks: int) -> None:
        """The ledger is about to be asked, under a new claim; it stays first in line meanwhile."""
        leg.claim = self.next_claim(leg.task_id, leg.role)
        leg.state = LegState.RESUMING
        self.grow(leg, num_blocks)

    def resume_refused(self, leg: Leg) -> None:
        """The ledger has no room after all."""
        self._unreserve(leg)

    def resume_granted(self, leg: Leg) -> None:
        """The ledger has room: the worker is about to be told."""
        leg.state = LegState.HELD
        self._unpark(leg)

    def abandon(self, leg: Leg, reason: str) -> list[Action]:
        """The task is over or goes on elsewhere: get the blocks back."""
        leg.is_abandoned = True
        if leg.state in (LegState.RESERVING, LegState.RELEASING):
            return []  # the ledger's answer, or the worker's, is still to come
        assert leg.worker_id is not None
        self._unpark(leg)
        leg.state = LegState.RELEASING
        return [SendCommand(leg.worker_id, CancelTask(leg.task_id, reason))]

    def ending(self, leg: Leg) -> None:
        """The worker ended the task by itself; its TaskReleased follows."""
        leg.is_abandoned = True
        self._unpark(leg)
        leg.state = LegState.RELEASING

    def close(self, leg: Leg) -> list[Action]:
        """Nothing is held for the leg any more: tell the ledger."""
        self.remove(leg)
        return [ReleaseHolding(leg.claim)]

    def remove(self, leg: Leg) -> None:
        """Forget the leg; removing twice is harmless."""
        if self._leg_by_key.get((leg.task_id, leg.role)) is leg:
            del self._leg_by_key[(leg.task_id, leg.role)]
            self._unpark(leg)
            self._leave(leg)

    def check_invariants(self) -> None:
        """Raise AssertionError unless the promises per worker are the sums over the legs."""
        for view in self._fleet:
            life = (view.hello.worker_id, view.hello.incarnation)
            legs = [
                leg for leg in self._leg_by_key.values() if (leg.worker_id, leg.incarnation) == life
            ]
            parked = {
                leg.task_id for leg in legs if leg.state in (LegState.PARKED, LegState.RESUMING)
            }
            assert set(view.parked.in_order()) == parked
            assert set(view.decode_legs) == {leg.task_id for leg in legs if leg.role == DECODE_LEG}
            borrowed = {leg.task_id: leg.place for leg in legs if leg.place is not None}
            places = [each for guests in view.places_by_host.values() for each in guests.items()]
            assert dict(places) == borrowed
            assert len(places) == len(borrowed)
            promised = sum(leg.num_blocks + leg.num_asked_blocks for leg in legs)
            assert view.num_promised_blocks == promised
            staged = [leg for leg in legs if leg.is_staged and not leg.num_asked_blocks]
            assert view.num_staged_blocks == sum(leg.num_staged_blocks for leg in staged)
            assert view.num_due_blocks == sum(leg.num_due_blocks for leg in staged)
            at_most = sum(leg.num_tokens_at_most for leg in view.decode_legs.values())
            assert view.num_tokens_at_most == at_most
            assert view.num_backlog_tokens == sum(leg.num_backlog_tokens for leg in legs)
            expected = {key for leg in legs for key in _keys_of(leg, view)}
            assert view.prefixes.num_expected == len(expected)

    def _unreserve(self, leg: Leg) -> None:
        leg.state = LegState.PARKED
        self.grow(leg, -leg.num_blocks)

    def _promise(self, leg: Leg, num_blocks: int) -> None:
        view = self._view_of(leg)
        if view is not None:
            view.num_promised_blocks += num_blocks
            view.places_changed()
            self._fleet.touch(view)

    def _stage(self, leg: Leg, sign: int) -> None:
        """Count, or do not count, what it holds and will need as staged."""
        view = self._view_of(leg)
        if view is not None and leg.is_staged and not leg.num_asked_blocks:
            view.num_staged_blocks += sign * leg.num_staged_blocks
            view.num_due_blocks += sign * leg.num_due_blocks

    def _unpark(self, leg: Leg) -> None:
        view = self._view_of(leg)
        if view is not None and leg.role == DECODE_LEG and view.parked.remove(leg.task_id):
            self._fleet.note_parked(view)

    def _view_of(self, leg: Leg) -> WorkerView | None:
        """The worker in the life that the leg is on; None once that is over."""
        view = None if leg.worker_id is None else self._fleet.get(leg.worker_id)
        return view if view is not None and view.hello.incarnation == leg.incarnation else None

    def _arrive(self, leg: Leg) -> None:
        view = self._view_of(leg)
        if view is None:
            return
        keys = _keys_of(leg, view)
        if (leg.role == PREFILL_LEG or leg.is_in_place) and keys:
            # Before its own blocks count as expected.
            num_hits = min(
                view.prefixes.num_hits(keys), (leg.num_tokens - 1) // view.hello.block_size
            )
            leg.num_backlog_tokens = leg.num_tokens - num_hits * view.hello.block_size
        view.last_taken = next(self._turns)
        if leg.role == DECODE_LEG:
            view.decode_legs[leg.task_id] = leg
            view.num_tokens_at_most += leg.num_tokens_at_most
        if leg.place is not None:
            view.places_by_host.setdefault(leg.place.host_id, {})[leg.task_id] = leg.place
        self._stage(leg, 1)
        view.num_promised_blocks += leg.num_blocks + leg.num_asked_blocks
        view.num_backlog_tokens += leg.num_backlog_tokens
        view.prefixes.expect(keys)
        self._fleet.touch(view)

    def _leave(self, leg: Leg) -> None:
        view = self._view_of(leg)
        if view is None:
            return
        if view.decode_legs.pop(leg.task_id, None) is not None:
            view.num_tokens_at_most -= leg.num_tokens_at_most
        view.places_changed()
        self.return_place(leg)
        self._stage(leg, -1)
        view.num_promised_blocks -= leg.num_blocks + leg.num_asked_blocks
        view.num_backlog_tokens -= leg.num_backlog_tokens
        view.prefixes.expect_no_more(_keys_of(leg, view))
        self._fleet.touch(view)


def _keys_of(leg: Leg, view: WorkerView) -> tuple[PrefixKey, ...]:
    return () if leg.prefix is None else leg.prefix.keys(view.hello.block_size)
