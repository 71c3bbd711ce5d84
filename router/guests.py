"""Which waiting prompts begin inside blocks that running answers do not need yet, and where.

The router has the queue, and it knows how far each of its answers has come, so it proposes; the
worker has the blocks, so it decides when the guest begins (decode_worker/lending.py). What a guest
borrows is booked for its host already. A worker is looked at again only when something of it, or
of the queue, has changed: places only shrink by themselves.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from router.events import GENERAL, GROWTH, Share
from router.leg import Leg, LegState
from router.sequence import Sequence
from router.state import RouterState
from router.worker_view import WorkerView, free_estimate, may_be_asked
from scheduling.block_leases import LeaseKind, LentPlace
from scheduling.block_pool import num_blocks_for
from scheduling.ids import TaskId
from scheduling.kvc_embedding import EmbeddingHosts
from scheduling.kvc_pipeline import GuestTask, HostView, PipelineRule, choose_guests
from scheduling.length_groups import LengthGroups
from scheduling.lifecycle import Phase
from scheduling.policy import Sharing

# How often guests may take free blocks for their prompts while the same task waits for room.
_MAX_OVERTAKES = 64
# Guests that one look at a worker takes at most.
MAX_AT_ONCE = 16
# Workers that are looked at for one task, or one arrival; of more, others the next time.
_MAX_LOOKED_AT = 32
# Iterations between a proposal and its arrival, beside those of the prompts in front of it.
NUM_LEAD_ITERATIONS = 2


@dataclass(frozen=True, slots=True)
class GuestOffer:
    """This task may begin there."""

    sequence: Sequence
    view: WorkerView
    # Of its own, in front of the place.
    num_blocks: int
    # None: it needs none.
    place: LentPlace | None


class Guests:
    """The part of the scheduler that looks for hosts."""

    def __init__(self, state: RouterState) -> None:
        self._state = state
        self._kind = state.policy.sharing
        # Where what they bring comes from.
        self._share: Share = GROWTH if state.policy.is_decoupled else GENERAL
        # The PT queue by predicted length, where guests are chosen by it.
        self._lengths: LengthGroups | None = None
        if self._kind is Sharing.PIPELINE:
            self._lengths = LengthGroups(
                state.settings.max_prompt_queue,
                length_quantum=state.settings.length_quantum_tokens,
            )
        self._num_arrivals = 0
        self._overtaken: TaskId | None = None
        self._num_overtakes = 0

    def entered(self, sequence: Sequence, key: tuple[float, ...]) -> None:
        """It waits in the PT queue."""
        self._num_arrivals += 1
        # Who has made room gets room of its own.
        if self._lengths is not None and not sequence.has_made_room:
            self._lengths.push(sequence.task_id, key, sequence.num_response_tokens)

    def left(self, task_id: TaskId) -> None:
        """It waits there no more."""
        if self._lengths is not None:
            self._lengths.remove(task_id)

    def pipelined(self, head: TaskId, now: float) -> list[GuestOffer]:
        """Tasks that begin in the middle of others, while `head` waits for room of its own."""
        lengths = self._lengths
        if lengths is None or self._has_waited_enough(head):
            return []
        offers: list[GuestOffer] = []
        for view in self._hosting(self._num_arrivals, now):
            offers += self._pipelined_on(view, lengths)
        self._num_overtakes += len(offers)
        return offers

    def embedded(self, sequence: Sequence, now: float) -> GuestOffer | None:
        """Where the task fits into the end of another's allocation, most tightly."""
        if self._kind is not Sharing.EMBED or sequence.has_made_room:
            return None
        for view in self._hosting(sequence.task_id, now):
            offer = self._embedded_on(view, sequence)
            if offer is not None:
                return offer
        return None

    def check_invariants(self) -> None:
        """Raise AssertionError unless the index holds those of the PT queue that may be guests."""
        if self._lengths is not None:
            self._lengths.check_invariants()
            waiting = set(self._state.prompt_queue.in_order())
            may_borrow = {t for t in waiting if not self._state.sequence_by_task[t].has_made_room}
            assert set(self._lengths.in_order()) == may_borrow

    def _has_waited_enough(self, head: TaskId) -> bool:
        if head != self._overtaken:
            self._overtaken, self._num_overtakes = head, 0
        return self._num_overtakes >= _MAX_OVERTAKES

    def _hosting(self, what: TaskId | int, now: float) -> Iterator[WorkerView]:
        """Mixed workers that may have a place for `what`, and had not when it was last asked."""
        for view in self._state.fleet.some(_MAX_LOOKED_AT):
            if (
                view.takes_prompts
                and may_be_asked(view, now)
                and view.num_backlog_tokens < view.max_backlog_tokens
                and len(view.decode_legs) < view.hello.max_num_seqs
                and free_estimate(view, self._share) > 0
                and (view.has_new_places or view.looked_at_for != what)
            ):
                view.has_new_places, view.looked_at_for = False, what
                yield view

    def _pipelined_on(self, view: WorkerView, lengths: LengthGroups) -> list[GuestOffer]:
        state, size = self._state, view.hello.block_size
        hosts = list(hosts_on(state, view, _num_iterations_to_begin(view)))
        if not hosts:
            return []
        num_free_blocks = free_estimate(view, self._share)

        def needs(task_id: TaskId) -> GuestTask:
            sequence = state.sequence_by_task[task_id]
            num_blocks = num_blocks_for(sequence.num_kv_tokens, size)
            if sequence.num_tokens_at_most > view.num_tokens:
                num_blocks = num_free_blocks + 1  # it could never end here
            return GuestTask(sequence.num_kv_tokens, num_blocks)

        room = min(MAX_AT_ONCE, view.hello.max_num_seqs - len(view.decode_legs))
        chosen = choose_guests(
            hosts,
            lengths,
            PipelineRule(size),
            needs,
            num_free_blocks=num_free_blocks,
            max_guests=room,
        )
        view.has_new_places = len(chosen) == room
        offers: list[GuestOffer] = []
        for guest in chosen:
            sequence = state.sequence_by_task[guest.task_id]
            place = LentPlace(
                guest.host_id,
                guest.start_block,
                guest.num_blocks,
                sequence.num_response_tokens,
                LeaseKind.PIPELINE,
            )
            num_blocks = needs(guest.task_id).num_new_blocks
            # Its own last block may have room for all of its answer.
            borrowed = place if guest.num_blocks else None
            offers.append(GuestOffer(sequence, view, num_blocks, borrowed))
        return offers

    def _embedded_on(self, view: WorkerView, sequence: Sequence) -> GuestOffer | None:
        if sequence.num_tokens_at_most > view.num_tokens:
            return None
        lead = _num_iterations_to_begin(view)
        hosts = EmbeddingHosts(hosts_on(self._state, view, lead), view.hello.block_size)
        num_response_tokens = sequence.num_response_tokens
        guest = hosts.take(sequence.task_id, sequence.num_kv_tokens, num_response_tokens)
        if guest is None or guest.num_blocks < 2:
            return None
        # Its first block is its own: the ledger keeps no holding of nothing, and one may grow.
        place = LentPlace(
            guest.host_id,
            guest.start_block + 1,
            guest.num_blocks - 1,
            num_response_tokens,
            LeaseKind.EMBEDDING,
        )
        return GuestOffer(sequence, view, 1, place)


def _num_iterations_to_begin(view: WorkerView) -> int:
    # Prompts in front of it, at the rate of half a backlog in each iteration.
    num_in_front = -(-2 * view.num_backlog_tokens // view.max_backlog_tokens)
    return NUM_LEAD_ITERATIONS + num_in_front


def hosts_on(state: RouterState, view: WorkerView, lead: int) -> Iterator[HostView]:
    """Answers of this router on the worker, as they may stand after so many iterations."""
    size = view.hello.block_size
    for leg in view.decode_legs.values():
        sequence = state.sequence_by_task.get(leg.task_id)
        if sequence is None or sequence.decode is not leg or leg.state is not LegState.HELD:
            continue
        if sequence.num_kv_tokens < leg.lends_from_tokens or not _is_at_work(sequence, leg):
            continue
        yield HostView(
            leg.task_id,
            sequence.num_kv_tokens + lead,
            leg.num_blocks + leg.num_borrowed_blocks,
            _lent_positions(view, leg),
            _num_lender_iterations(state, view, leg, lead, size),
        )


def _is_at_work(sequence: Sequence, leg: Leg) -> bool:
    if sequence.phase is Phase.PREFILLING:
        return leg.is_in_place
    return sequence.phase is Phase.DECODING


def _lent_positions(view: WorkerView, host: Leg) -> tuple[int, ...]:
    guests = view.places_by_host.get(host.task_id)
    if not guests:
        return ()
    blocks = (range(place.first, place.first + place.num_blocks) for place in guests.values())
    return tuple(sorted({position for each in blocks for position in each}))


def _num_lender_iterations(
    state: RouterState, view: WorkerView, leg: Leg, lead: int, size: int
) -> int | None:
    """Before anybody of those that lent to it, directly or not, may be where it begins."""
    least: int | None = None
    while leg.place is not None:
        host = view.decode_legs.get(leg.place.host_id)
        sequence = state.sequence_by_task.get(leg.place.host_id)
        if host is None or sequence is None:
            break
        num_iterations = leg.place.first * size - sequence.num_kv_tokens - lead
        least = num_iterations if least is None else min(least, num_iterations)
        leg = host
    return least
