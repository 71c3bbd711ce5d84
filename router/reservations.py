"""Finds workers for a task and opens the leg that asks the ledger for room on them."""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from functools import partial

from router.admission import admitting, cut_blocks, decode_blocks
from router.answers_in_place import blocks_in_place, share_for_prompt
from router.events import DECODE_LEG, GENERAL, GROWTH, PREFILL_LEG, Reserve, Role, Share
from router.guests import GuestOffer
from router.leg import Leg
from router.preferences import MAX_PREFERENCES, Preferences
from router.sequence import Sequence
from router.state import RouterState
from router.worker_view import WorkerView, free_estimate, may_be_asked
from scheduling.block_leases import LentPlace
from scheduling.block_pool import num_blocks_for
from scheduling.ids import WorkerId


class Reservations:
    """The part of the scheduler that knows where a task may go. None: there is no room now."""

    def __init__(self, state: RouterState) -> None:
        self._state = state
        self._preferences = Preferences(state.fleet)

    def prefill(self, sequence: Sequence, now: float) -> Reserve | None:
        """Room for the prompt on a prefill worker."""
        num_tokens = sequence.num_kv_tokens
        candidates = self._preferences.prefill(
            now,
            num_tokens,
            sequence.num_tokens_at_most,
            sequence.prefill_prefix,
        )
        if not candidates:
            return None
        num_blocks = num_blocks_for(num_tokens, candidates[0].hello.block_size)
        return self._open_leg(sequence, PREFILL_LEG, candidates, num_blocks, GENERAL)

    def in_place(self, sequence: Sequence, now: float) -> Reserve | None:
        """Room for a prompt on a mixed worker; for its answer too, unless they are decoupled."""
        if self._state.policy.is_decoupled and not sequence.has_made_room:
            return self._staged(sequence, now)
        num_blocks_for_size = partial(decode_blocks, self._state, sequence)
        share: Share = GENERAL
        candidates = self._mixed(sequence, now, num_blocks_for_size)
        if not candidates and self._state.policy.least_share < 1:
            cut_for_size = partial(cut_blocks, self._state, sequence)
            candidates = self._mixed(sequence, now, cut_for_size)
            num_blocks_for_size = cut_for_size if candidates else num_blocks_for_size
        most = self._state.fleet.most_general_tokens_in_place()
        if not candidates and sequence.num_tokens_at_most > most:
            share = GROWTH
            candidates = self._mixed(sequence, now, num_blocks_for_size, self._is_all_for(sequence))
        candidates = admitting(self._state, candidates, sequence)
        if not candidates:
            return None
        num_blocks = num_blocks_for_size(candidates[0].hello.block_size)
        return self._open_leg(sequence, DECODE_LEG, candidates, num_blocks, share, is_in_place=True)

    def for_guest(self, offer: GuestOffer) -> Reserve:
        """Room for what a guest does not borrow, beside its host."""
        sequence, num_blocks, place = offer.sequence, offer.num_blocks, offer.place
        return self._open_leg(
            sequence,
            DECODE_LEG,
            [offer.view],
            num_blocks,
            GROWTH if self._state.policy.is_decoupled else GENERAL,
            is_in_place=True,
            place=place,
        )

    def decode(
        self, sequence: Sequence, now: float, first: WorkerId | None = None
    ) -> Reserve | None:
        """Room for answer and KV on a decode worker; rather on `first`, if there is any there."""
        assert sequence.prefill is not None
        assert sequence.prefill.worker_id is not None
        fleet = self._state.fleet
        prefill = fleet.get(sequence.prefill.worker_id)
        assert prefill is not None
        hello, prefix = prefill.hello, sequence.request.prefix
        num_blocks = decode_blocks(self._state, sequence, hello.block_size)
        # Where the general share of no worker could ever hold the task, it may take from the other.
        most = fleet.max_general_blocks(hello.compatibility)
        share: Share = GENERAL if num_blocks <= most else GROWTH
        due_at_s = sequence.due.next_token_at_s
        candidates = self._preferences.decode(
            now, num_blocks, hello.compatibility, share, prefix, due_at_s
        )
        view = None if first is None else fleet.get(first)
        if (
            view is not None
            and view.hello.compatibility == hello.compatibility
            and may_be_asked(view, now, due_at_s)
            and free_estimate(view, share) >= num_blocks
        ):
            others = (other for other in candidates if other is not view)
            candidates = (view, *others)[:MAX_PREFERENCES]
        candidates = admitting(self._state, candidates, sequence)
        if not candidates:
            return None
        return self._open_leg(sequence, DECODE_LEG, candidates, num_blocks, share)

    @property
    def most_free_decode_tokens(self) -> int:
        """No decode worker has room for more, in its general share."""
        return self._preferences.most_free_decode_tokens

    def check_invariants(self) -> None:
        """Raise AssertionError unless every worker is preferred as it should be."""
        self._preferences.check_invariants()

    def _staged(self, sequence: Sequence, now: float) -> Reserve | None:
        state = self._state
        candidates = self._mixed(
            sequence,
            now,
            lambda size: blocks_in_place(sequence, size)[0],
            lambda view: share_for_prompt(state, view, sequence) is not None,
        )
        if not candidates:
            return None
        share = self._share_on(candidates[0], sequence)
        alike = [view for view in candidates if self._share_on(view, sequence) == share]
        num_blocks, num_due_blocks = blocks_in_place(sequence, alike[0].hello.block_size)
        return self._open_leg(
            sequence,
            DECODE_LEG,
            alike,
            num_blocks,
            share,
            is_in_place=True,
            num_due_blocks=num_due_blocks,
        )

    def _mixed(
        self,
        sequence: Sequence,
        now: float,
        num_blocks_for_size: Callable[[int], int],
        has_room: Callable[[WorkerView], bool] | None = None,
    ) -> tuple[WorkerView, ...]:
        return self._preferences.mixed(
            now,
            sequence.num_kv_tokens,
            sequence.num_tokens_at_most,
            sequence.prefill_prefix,
            num_blocks_for_size,
            has_room,
            sequence.due.next_token_at_s,
        )

    def _is_all_for(self, sequence: Sequence) -> Callable[[WorkerView], bool]:
        """Where no general share could ever hold the task, it may take from the other."""

        def has_room(view: WorkerView) -> bool:
            num_blocks = decode_blocks(self._state, sequence, view.hello.block_size)
            return view.num_general_blocks < num_blocks <= free_estimate(view, GROWTH)

        return has_room

    def _share_on(self, view: WorkerView, sequence: Sequence) -> Share:
        share = share_for_prompt(self._state, view, sequence)
        assert share is not None
        return share

    def _open_leg(
        self,
        sequence: Sequence,
        role: Role,
        candidates: Seq[WorkerView],
        num_blocks: int,
        share: Share,
        *,
        is_in_place: bool = False,
        place: LentPlace | None = None,
        num_due_blocks: int | None = None,
    ) -> Reserve:
        preferences = tuple([view.life for view in candidates])
        leg = Leg(self._state.legs.next_claim(sequence.task_id, role), num_blocks)
        leg.worker_id, leg.incarnation = preferences[0]
        leg.num_tokens = num_tokens = sequence.num_kv_tokens
        leg.num_tokens_at_most = sequence.num_tokens_at_most
        leg.is_in_place = is_in_place
        leg.is_staged, leg.num_due_blocks = num_due_blocks is not None, num_due_blocks or 0
        leg.place, leg.num_borrowed_blocks = place, 0 if place is None else place.num_blocks
        is_prompt = role == PREFILL_LEG or is_in_place
        leg.prefix = sequence.prefill_prefix if is_prompt else sequence.request.prefix
        leg.num_backlog_tokens = num_tokens if is_prompt else 0
        self._state.legs.open(leg)
        sequence.set_leg(role, leg)
        return Reserve(leg.claim, preferences, num_blocks, share)
