"""Running answers that need more blocks than they have: they get these, or make room."""

from router.answers_in_place import room_answered, wait_again
from router.events import DECODE_LEG, Action, Extend, ExtensionAnswered, SendCommand
from router.leg import Leg, LegState
from router.scheduler import Scheduler
from router.sequence import Sequence
from router.state import RouterState
from router.swapped import note_swap, park
from router.worker_view import WorkerView
from scheduling.lifecycle import Change
from scheduling.messages import GrantGrowth


class Growth:
    """Books what they grow by, and sets those aside for which there is nothing."""

    def __init__(self, state: RouterState, scheduler: Scheduler) -> None:
        self._state = state
        self._scheduler = scheduler

    def needed(self, sequence: Sequence, leg: Leg, num_blocks: int) -> Extend:
        """It comes to the end of its blocks."""
        sequence.num_extensions += 1
        return Extend(leg.claim, num_blocks, sequence.num_extensions)

    def inherited(self, sequence: Sequence, leg: Leg, num_blocks: int) -> Extend:
        """Its host ended: what it had borrowed is its own."""
        self._state.legs.inherit(leg, num_blocks)
        sequence.num_extensions += 1
        return Extend(leg.claim, num_blocks, sequence.num_extensions, is_inherited=True)

    def answered(self, event: ExtensionAnswered, now: float) -> list[Action]:
        """The ledger's word on a growing response goes to its worker."""
        if event.is_inherited:
            return []  # the worker has them, whatever the ledger says
        leg = self._state.legs.get(event.claim.task_id, DECODE_LEG)
        if (
            leg is None
            or leg.claim != event.claim
            or leg.worker_id is None
            or leg.state is not LegState.HELD
        ):
            return []
        if leg.is_staged:
            return room_answered(self._state, leg, event.granted, now)
        view = self._state.fleet.get(leg.worker_id)
        if view is not None:
            view.is_starving = not event.granted
            self._state.fleet.touch(view)
        if event.granted:
            self._state.legs.grow(leg, event.num_blocks)
        num_blocks = event.num_blocks if event.granted else 0
        return [SendCommand(leg.worker_id, GrantGrowth(leg.task_id, num_blocks))]

    def outgrown(self, view: WorkerView, sequence: Sequence, leg: Leg, now: float) -> list[Action]:
        """There are none: it waits in place, with its KV."""
        return wait_again(self._state, view, sequence, leg, now)

    def preempted(self, sequence: Sequence, leg: Leg, now: float) -> list[Action]:
        """It made room, and is computed again."""
        self._state.legs.ending(leg)
        return self._scheduler.try_again(sequence, Change.PREEMPTED, "preempted", now)

    def swapped_out(self, view: WorkerView, sequence: Sequence, now: float) -> list[Action]:
        """It made room: its KV is in the worker's host memory."""
        if view.is_swapping_itself:
            note_swap(self._state, sequence)
            return []
        # Its blocks are free, so others that starve may be asked again.
        view.is_starving, view.paused_until_s = False, 0.0
        self._state.fleet.touch(view)
        return park(self._state, sequence, now)
