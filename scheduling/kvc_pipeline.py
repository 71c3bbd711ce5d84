"""Which waiting tasks may generate inside KV blocks that a running one will not need for a while.

A host allocated for its whole response writes one token per iteration, so the second half of what
it has not written stays empty until it has written the first. A guest that begins in the middle and
ends before the host's head gets there costs no new block for its response. Halves hold guests in
turn, and so do guests. All here is arithmetic on positions in block tables; `BlockPool.lend` does
what was chosen. Whoever runs the batch ends sequences before others append.

Source: EcoServe, section KVCPipe.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from scheduling.block_pool import BlockPool, num_blocks_for, runs_of
from scheduling.ids import TaskId
from scheduling.length_groups import LengthGroups

# Tasks of a fitting response looked at for one whose prompt finds room as well.
_MAX_LOOKS = 4


@dataclass(frozen=True, slots=True)
class PipelineRule:
    """What a place for a guest must leave free."""

    block_size: int
    # Between a guest's predicted end and the host's head: a guest may run over by so much before
    # they meet. 0 only where lengths are known exactly.
    num_buffer_blocks: int = 1
    # Smaller places are not worth a guest.
    min_guest_blocks: int = 2

    def __post_init__(self) -> None:
        if min(self.block_size, self.num_buffer_blocks + 1, self.min_guest_blocks) < 1:
            raise ValueError(f"sizes must be positive, the buffer at least 0: {self}")

    @property
    def num_buffer_tokens(self) -> int:
        """The buffer in tokens."""
        return self.num_buffer_blocks * self.block_size


@dataclass(frozen=True, slots=True)
class HostView:
    """A sequence that may lend, as it will stand when a guest writes its first token."""

    task_id: TaskId
    # Tokens whose KV is written: its head.
    num_written_tokens: int
    # Length of its block table.
    num_blocks: int
    # Where in its table others write, ascending.
    lent_positions: tuple[int, ...] = ()
    # Iterations before a lender arrives at what this sequence borrowed; None where it did not.
    num_lender_iterations: int | None = None


@dataclass(frozen=True, slots=True)
class GuestPlace:
    """A gap in a host's table, and where in it a guest begins: positions [start, end)."""

    host: HostView
    gap_start: int
    start_block: int
    gap_end: int
    # A response of so many tokens fits; a longer one does not.
    max_response_tokens: int


@dataclass(frozen=True, slots=True)
class GuestTask:
    """What a task that waits would need as a guest, apart from room for its response."""

    # Tokens whose KV it has or brings, in blocks of its own; the response begins in the last one.
    num_written_tokens: int
    # Blocks still to be allocated for these; 0 where they lie on this worker already.
    num_new_blocks: int


@dataclass(frozen=True, slots=True)
class Guest:
    """Lend `num_blocks` of the host's table from position `start_block` to this task."""

    task_id: TaskId
    host_id: TaskId
    start_block: int
    num_blocks: int


def host_view(
    pool: BlockPool, task_id: TaskId, block_size: int, num_written_tokens: Callable[[TaskId], int]
) -> HostView:
    """A sequence as the pool of its worker knows it."""
    lenders = pool.lender_positions_of(task_id).items()
    return HostView(
        task_id=task_id,
        num_written_tokens=num_written_tokens(task_id),
        num_blocks=pool.num_blocks_of(task_id),
        lent_positions=pool.lent_positions_of(task_id),
        num_lender_iterations=min(
            (position * block_size - num_written_tokens(lender) for lender, position in lenders),
            default=None,
        ),
    )


def guest_places(host: HostView, rule: PipelineRule) -> list[GuestPlace]:
    """One place in each gap of the host's table that is worth it: the nearest to the head first.

    A gap is what lies between the head, the blocks lent already and the end of the table.
    """
    gaps: list[tuple[int, int]] = []
    start = num_blocks_for(host.num_written_tokens, rule.block_size)
    for lent_start, lent_end in runs_of(host.lent_positions):
        gaps.append((start, lent_start))
        start = max(start, lent_end)
    gaps.append((start, host.num_blocks))
    return _worthwhile(rule, (_place(host, rule, start, end) for start, end in gaps))


def fits(
    host: HostView, rule: PipelineRule, guest: Guest, task: GuestTask, num_response_tokens: int
) -> bool:
    """The guest would still end in time and in place, as the host stands now."""
    blocks = range(guest.start_block, guest.start_block + guest.num_blocks)
    first = num_blocks_for(host.num_written_tokens, rule.block_size)
    room = num_blocks_for(task.num_written_tokens, rule.block_size) + guest.num_blocks
    return (
        first <= blocks.start
        and blocks.stop <= host.num_blocks
        and not any(position in blocks for position in host.lent_positions)
        and task.num_written_tokens + num_response_tokens <= room * rule.block_size
        and num_response_tokens <= _num_quiet_iterations(host, rule, guest.start_block)
    )


def choose_guests(
    hosts: Iterable[HostView],
    waiting: LengthGroups,
    rule: PipelineRule,
    guest_task: Callable[[TaskId], GuestTask],
    *,
    num_free_blocks: int,
    max_guests: int,
) -> list[Guest]:
    """Take guests out of the queue, hosts before the guests that they host in turn.

    The largest place gets the longest response that fits it, of the earliest deadline bucket that
    has one; what it leaves, before, behind and inside, is offered again. Guests overtake tasks that
    wait for room, by use of room that no admitted task could use: only `num_free_blocks`, for what
    guests bring, is taken from those. O(log n) for each guest and each look.
    """
    places = [place for host in hosts for place in guest_places(host, rule)]
    # Equal places in the order in which they came up.
    heap = [(-place.max_response_tokens, number, place) for number, place in enumerate(places)]
    heapq.heapify(heap)
    num_places = len(heap)
    guests: list[Guest] = []
    while heap and len(guests) < max_guests:
        place = heapq.heappop(heap)[-1]
        longest = waiting.first_at_most(place.max_response_tokens)
        if longest is None:
            break  # nor does anything fit a smaller place
        task_id = _with_room(longest, waiting, guest_task, num_free_blocks)
        if task_id is None:
            continue
        task = guest_task(task_id)
        num_free_blocks -= task.num_new_blocks
        guest = _guest_at(place, task_id, task, waiting.num_response_tokens_of(task_id), rule)
        waiting.remove(task_id)
        guests.append(guest)
        for left in _what_it_leaves(place, guest, task, rule):
            heapq.heappush(heap, (-left.max_response_tokens, num_places, left))
            num_places += 1
    return guests


def _with_room(
    longest: TaskId,
    waiting: LengthGroups,
    guest_task: Callable[[TaskId], GuestTask],
    num_free_blocks: int,
) -> TaskId | None:
    """This task, or a shorter one, for whose prompt there is room as well."""
    task_id: TaskId | None = longest
    for _ in range(_MAX_LOOKS):
        if task_id is None or guest_task(task_id).num_new_blocks <= num_free_blocks:
            return task_id
        task_id = waiting.first_at_most(waiting.num_response_tokens_of(task_id) - 1)
    return None


def _guest_at(
    place: GuestPlace,
    task_id: TaskId,
    task: GuestTask,
    num_response_tokens: int,
    rule: PipelineRule,
) -> Guest:
    # The response begins in what its last own block has left.
    own = num_blocks_for(task.num_written_tokens, rule.block_size)
    all_blocks = num_blocks_for(task.num_written_tokens + num_response_tokens, rule.block_size)
    return Guest(task_id, place.host.task_id, place.start_block, all_blocks - own)


def _what_it_leaves(
    place: GuestPlace, guest: Guest, task: GuestTask, rule: PipelineRule
) -> list[GuestPlace]:
    host, end = place.host, guest.start_block + guest.num_blocks
    as_host = HostView(
        task_id=guest.task_id,
        num_written_tokens=task.num_written_tokens,
        num_blocks=num_blocks_for(task.num_written_tokens, rule.block_size) + guest.num_blocks,
        num_lender_iterations=_num_iterations_before(host, rule, guest.start_block),
    )
    beside = (
        _place(host, rule, place.gap_start, guest.start_block),
        _place(host, rule, end, place.gap_end),
    )
    return [*_worthwhile(rule, beside), *guest_places(as_host, rule)]


def _place(host: HostView, rule: PipelineRule, start: int, end: int) -> GuestPlace:
    """The middle between the head and the end of the gap, up to a block; not before the gap."""
    middle = num_blocks_for(host.num_written_tokens + end * rule.block_size, 2 * rule.block_size)
    first = max(start, middle)
    limit = min((end - first) * rule.block_size, _num_quiet_iterations(host, rule, first))
    return GuestPlace(host, start, first, end, limit)


def _worthwhile(rule: PipelineRule, places: Iterable[GuestPlace]) -> list[GuestPlace]:
    least = rule.min_guest_blocks * rule.block_size
    return [place for place in places if place.max_response_tokens >= least]


def _num_iterations_before(host: HostView, rule: PipelineRule, position: int) -> int:
    """Until the head of the host, or of one that lent to it, may be at this position."""
    own = position * rule.block_size - host.num_written_tokens
    return own if host.num_lender_iterations is None else min(own, host.num_lender_iterations)


def _num_quiet_iterations(host: HostView, rule: PipelineRule, position: int) -> int:
    return _num_iterations_before(host, rule, position) - rule.num_buffer_tokens
