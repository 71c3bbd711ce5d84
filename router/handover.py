"""From prefill to decode: blocks granted or refused, KV pushed, and the answer begun there."""

from router.events import Action, TransferHolding
from router.guests_in_line import guest_began, guest_refused
from router.in_place import place_refused
from router.leg import Leg, LegState
from router.scheduler import Scheduler
from router.sequence import Sequence
from router.state import RouterState
from router.swapped import came_back, park
from scheduling.lifecycle import Change, Phase
from scheduling.messages import BlocksGranted, DecodeStarted, KvPushed


class Handover:
    """Brings sequences to the worker that is to decode them, or puts them back in line."""

    def __init__(self, state: RouterState, scheduler: Scheduler) -> None:
        self._state = state
        self._scheduler = scheduler

    def granted(
        self, sequence: Sequence, leg: Leg, report: BlocksGranted, now: float
    ) -> list[Action]:
        """The decode worker has blocks for the KV, and says where."""
        leg.target = report.target
        sequence.early_binding = sequence.phase is Phase.PREFILLING
        actions = self._scheduler.push_to_target(sequence)
        if sequence.phase is Phase.GENERATION_QUEUED:
            actions += self._scheduler.bind(sequence, now)
        return actions

    def refused(self, sequence: Sequence, leg: Leg, now: float) -> list[Action]:
        """It has none, or the place where a guest was to begin is gone."""
        if leg.is_staged:
            guest_refused(self._state, sequence, leg)
            return []
        if leg.place is not None:
            actions = place_refused(self._state, sequence, leg, now)
            self._scheduler.requeue(sequence, leg)
            return actions
        assert leg.worker_id is not None
        self._state.fleet.pause(leg.worker_id, now)
        if sequence.is_swapped:
            return park(self._state, sequence, now)
        actions = self._state.legs.close(leg)
        self._scheduler.requeue(sequence, leg)
        return actions

    def pushed(self, sequence: Sequence, report: KvPushed) -> list[Action]:
        """All KV has left the prefill worker: the ledger moves the holding."""
        sequence.num_bytes_pushed += report.num_bytes
        sequence.push_s += report.copy_s
        decode = sequence.decode
        if decode is None or decode.state is not LegState.HELD:
            return []
        return [TransferHolding(decode.claim)]

    def started(self, sequence: Sequence, leg: Leg, report: DecodeStarted, now: float) -> None:
        """The worker has all KV: the answer goes on there."""
        if leg.is_staged:
            guest_began(self._state, sequence, leg, now)
            return
        if sequence.is_swapped:
            came_back(sequence, now)
            return
        assert leg.target is not None  # TRANSFERRING begins with a target
        export = leg.target.export
        num_moved = leg.num_kv_blocks - leg.target.first_block_index
        sequence.num_blocks_moved += num_moved
        sequence.num_bytes_moved += num_moved * export.block_bytes
        sequence.num_blocks_skipped += leg.target.first_block_index
        sequence.transport = report.transport or export.transport
        sequence.move(Change.DECODE_STARTED, now)
