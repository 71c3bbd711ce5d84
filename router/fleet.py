"""The router's view of the connected workers: capacity, what it has promised, what they report."""

import heapq
import math
from collections.abc import Iterator
from itertools import count

from router.absences import MENDED_WITHIN_S, SHORTEST_WAIT_S, Absences
from router.events import DECODE_LEG, PREFILL_LEG, IntroducePeer, Role, Share
from router.leg import Leg
from router.pairing_text import closest_difference
from router.worker_view import WorkerView, free_estimate, may_be_asked
from scheduling.backlog import BacklogLimit
from scheduling.errors import CanNeverFit, NoWorkerAvailable
from scheduling.ids import WorkerId
from scheduling.messages import WorkerHello, WorkerLoad
from scheduling.placement import Candidate
from scheduling.prefix_chain import PromptPrefix

# How long a worker that refused is left alone, unless it frees something earlier.
_REFUSAL_PAUSE_S = 0.05
# An instant that a worker tells in every frame: by so little it moves with the time of the frames.
_FRAME_JITTER_S = 0.1


class Fleet:
    """Workers by id, in the order in which they connected."""

    def __init__(self, backlog: BacklogLimit = BacklogLimit()) -> None:  # noqa: B008 - frozen
        self._backlog = backlog
        self._view_by_id: dict[WorkerId, WorkerView] = {}
        # Tokens that the largest decode worker of each compatibility holds; None: not known yet.
        self._reach_by_compatibility: dict[str, int] | None = None
        self._max_request_tokens: int | None = None
        self._general_blocks: dict[str, int] = {}
        self._most_in_place: int | None = None
        # Something of them has changed that decides who gets a task.
        self._touched: set[WorkerId] = set()
        # In whose host memory tasks of this router wait, with the number of the connection.
        self._number_with_parked: dict[WorkerId, int] = {}
        self._numbers = count()
        # What is left of the present round of `some`.
        self._round: Iterator[WorkerView] = iter(())
        # (until, worker); it counts where the worker says the same.
        self._pauses: list[tuple[float, WorkerId]] = []
        self._absences = Absences()

    def __len__(self) -> int:
        return len(self._view_by_id)

    def __iter__(self) -> Iterator[WorkerView]:
        return iter(self._view_by_id.values())

    def some(self, most: int) -> Iterator[WorkerView]:
        """All of a small fleet, in order; of a larger one so many, and the next ones next time."""
        if len(self._view_by_id) <= most:
            yield from self._view_by_id.values()
            return
        for _ in range(most):
            view = next(self._round, None)
            if view is None:
                self._round = iter(list(self._view_by_id.values()))
                view = next(self._round)
            yield view

    def get(self, worker_id: WorkerId) -> WorkerView | None:
        """The worker, or None when it is not connected."""
        return self._view_by_id.get(worker_id)

    def add(self, hello: WorkerHello) -> None:
        """A session was opened; an earlier life of the worker has been removed before."""
        idle = WorkerLoad(hello.num_blocks, 0, 0, 0, admission=hello.admission)
        number = next(self._numbers)
        most = self._backlog.tokens(hello.role, hello.max_num_batched_tokens)
        view = WorkerView(hello, idle, number=number, max_backlog_tokens=most)
        self._view_by_id[hello.worker_id] = view
        self._absences.came(hello.worker_id)
        self._touched.add(hello.worker_id)
        self._changed()

    def remove(self, worker_id: WorkerId, now: float) -> WorkerView | None:
        """The session ended."""
        if (view := self._view_by_id.get(worker_id)) is not None:
            self._absences.went(view.hello, now)
        self._changed()
        self._touched.add(worker_id)
        self._number_with_parked.pop(worker_id, None)
        return self._view_by_id.pop(worker_id, None)

    def touch(self, view: WorkerView) -> None:
        """Something of the worker has changed that decides whether it gets a task."""
        self._touched.add(view.hello.worker_id)

    def take_touched(self) -> set[WorkerId]:
        """Of whom something has changed since the last call, or who came or went."""
        touched, self._touched = self._touched, set()
        return touched

    def note_parked(self, view: WorkerView) -> None:
        """A task was parked on the worker, or is so no more."""
        self.touch(view)
        if len(view.parked):
            self._number_with_parked[view.hello.worker_id] = view.number
        else:
            self._number_with_parked.pop(view.hello.worker_id, None)

    @property
    def num_with_parked(self) -> int:
        """Workers that have parked tasks of this router."""
        return len(self._number_with_parked)

    def with_parked(self) -> list[WorkerView]:
        """Workers that have parked tasks of this router, in the order in which they connected."""
        numbers = self._number_with_parked
        if not numbers:
            return []
        return [
            self._view_by_id[worker_id] for worker_id in sorted(numbers, key=numbers.__getitem__)
        ]

    def take_load(self, view: WorkerView, load: WorkerLoad, now: float) -> bool:
        """A frame told how full the worker is and what it takes on; True: it was opened again."""
        due_in_s, due_before_s = load.parked_due_in_s, view.told_parked_due_at_s
        view.told_parked_due_at_s = -math.inf if due_in_s is None else now + due_in_s
        is_due_moved = not _is_about(view.told_parked_due_at_s, due_before_s)
        if load.pass_time_error is not None:
            view.pass_time_error = load.pass_time_error
        if load == view.load and not is_due_moved:
            return False
        has_changed = load.takes_new_tasks != view.load.takes_new_tasks
        view.load = load
        self.touch(view)
        if has_changed:
            self._changed()
        return has_changed and load.takes_new_tasks

    def with_role(self, role: Role) -> list[WorkerView]:
        """Connected workers that take legs of that role; mixed ones take decode legs."""
        return [view for view in self._view_by_id.values() if view.role == role]

    def introductions(self, newcomer: WorkerHello) -> list[IntroducePeer]:
        """Who must be told of which pool, now that this worker has connected."""
        peers = [
            view.hello
            for view in self._view_by_id.values()
            if view.hello.compatibility == newcomer.compatibility
        ]
        if newcomer.role == PREFILL_LEG:
            exports = [peer.export for peer in peers if peer.export is not None]
            return [IntroducePeer(newcomer.worker_id, export) for export in exports]
        if newcomer.export is None:
            return []
        return [
            IntroducePeer(peer.worker_id, newcomer.export)
            for peer in peers
            if peer.role == PREFILL_LEG
        ]

    def decode_candidates(
        self,
        now: float,
        share: Share,
        prefix: PromptPrefix | None = None,
        due_at_s: float = math.inf,
    ) -> tuple[Candidate, ...]:
        """Decode workers that may be asked now for a task that is due then, with what is free of
        that share."""
        return tuple(
            _candidate(view, share, prefix)
            for view in self._view_by_id.values()
            if view.role == DECODE_LEG and may_be_asked(view, now, due_at_s)
        )

    def as_candidate(
        self, view: WorkerView, share: Share, prefix: PromptPrefix | None
    ) -> Candidate:
        """One worker, as placement sees it."""
        return _candidate(view, share, prefix)

    def max_tokens_beyond(self, prefill: WorkerView) -> int:
        """What the largest decode worker that this prefill worker can push to holds."""
        return self._reach().get(prefill.hello.compatibility, 0)

    def is_out_of_reach(self, prefill: Leg | None, num_tokens: int) -> bool:
        """KV on that worker can go nowhere, though other pairs hold so many tokens: its place is
        needed for theirs."""
        worker_id = None if prefill is None else prefill.worker_id
        view = None if worker_id is None else self._view_by_id.get(worker_id)
        if view is None or self.max_request_tokens() == 0:
            return False
        return self.max_tokens_beyond(view) < num_tokens

    def max_general_blocks(self, compatibility: str) -> int:
        """The largest new task that a decode worker of that compatibility takes when empty."""
        known = self._general_blocks.get(compatibility)
        if known is None:
            sizes = (
                view.num_general_blocks
                for view in self.with_role(DECODE_LEG)
                if view.hello.compatibility == compatibility and view.load.takes_new_tasks
            )
            known = self._general_blocks[compatibility] = max(sizes, default=0)
        return known

    def most_general_tokens_in_place(self) -> int:
        """What the general share of no mixed worker exceeds, be it empty; 0 without any."""
        if self._most_in_place is None:
            sizes = (
                view.num_general_blocks * view.hello.block_size
                for view in self._view_by_id.values()
                if view.takes_prompts and view.load.takes_new_tasks
            )
            self._most_in_place = max(sizes, default=0)
        return self._most_in_place

    def pause(self, worker_id: WorkerId, now: float) -> float:
        """Leave a worker alone that refused; return until when."""
        view = self._view_by_id.get(worker_id)
        if view is not None:
            view.paused_until_s = now + _REFUSAL_PAUSE_S
            heapq.heappush(self._pauses, (view.paused_until_s, worker_id))
        return now + _REFUSAL_PAUSE_S

    def next_resume_at(self, now: float) -> float | None:
        """When the first paused worker may be asked again, or None."""
        while self._pauses:
            until_s, worker_id = self._pauses[0]
            view = self._view_by_id.get(worker_id)
            if view is not None and view.paused_until_s == until_s > now:
                return until_s
            heapq.heappop(self._pauses)
        return None

    def max_request_tokens(self) -> int:
        """The longest prompt plus answer that a pair or a mixed worker holds; 0 without any."""
        if self._max_request_tokens is None:
            reach = self._reach()
            sizes = (
                min(view.num_tokens, reach.get(view.hello.compatibility, 0))
                for view in self.with_role(PREFILL_LEG)
                if view.load.takes_new_tasks
            )
            alone = (
                view.num_tokens
                for view in self._view_by_id.values()
                if view.takes_prompts and view.load.takes_new_tasks
            )
            self._max_request_tokens = max((*sizes, *alone), default=0)
        return self._max_request_tokens

    def _reach(self) -> dict[str, int]:
        # Asked for on every event; changes only with the fleet.
        if self._reach_by_compatibility is None:
            reach: dict[str, int] = {}
            for view in self.with_role(DECODE_LEG):
                if view.load.takes_new_tasks:
                    key = view.hello.compatibility
                    reach[key] = max(reach.get(key, 0), view.num_tokens)
            self._reach_by_compatibility = reach
        return self._reach_by_compatibility

    def _changed(self) -> None:
        self._round = iter(())
        self._reach_by_compatibility = None
        self._max_request_tokens = None
        self._general_blocks.clear()
        self._most_in_place = None

    def retry_after_s(self, now: float) -> float:
        """For a caller whose answer failed: at once, or when workers that went may be back."""
        return SHORTEST_WAIT_S if self.max_request_tokens() else self._wait_s(now)

    def _wait_s(self, now: float, ignored_s: float = 0.0) -> float:
        return self._absences.wait_s({view.hello.role for view in self}, now, ignored_s)

    def check_can_fit(self, num_tokens: int, now: float) -> None:
        """Refuse a request that no pair could hold even when empty.

        Raises: NoWorkerAvailable, CanNeverFit.
        """
        most = self.max_request_tokens()
        if most == 0:
            # Clients that are told of a long wait give up, so it must be one.
            wait_s = self._wait_s(now, ignored_s=MENDED_WITHIN_S)
            raise NoWorkerAvailable(self.why_no_pair(), retry_after_s=wait_s)
        if num_tokens > most:
            raise CanNeverFit(
                f"prompt and max_tokens need KV for {num_tokens} tokens, the largest pair of "
                f"workers holds {most}; shorten the request or start workers with more KV memory"
            )

    def why_no_pair(self) -> str:
        """Why nobody could be served now, and what to do; only where that is so."""
        prefill, decode = self.with_role("prefill"), self.with_role("decode")
        if any(view.load.is_draining for view in (*prefill, *decode)):
            return "workers are about to leave; wait until their successors are ready"
        if any(not view.load.takes_new_tasks for view in (*prefill, *decode)):
            return "an operator cordoned the workers; wait until one is open again"
        if prefill and decode:
            differs = closest_difference(
                [view.hello for view in prefill], [view.hello for view in decode]
            )
            return (
                "prefill and decode workers are connected, but no two are compatible: "
                f"{differs or 'nobody says why'}; they must be of one release and serve one model "
                "with one dtype, KV dtype, block size and number of KV slices, see `tandem admin "
                "workers`"
            )
        missing = " and ".join(
            role for role, there in (("prefill", prefill), ("decode", decode)) if not there
        )
        return f"no {missing} worker is connected; start one, or wait until it is ready"


def _is_about(at_s: float, other_at_s: float) -> bool:
    """Whether both are one instant, told twice; they may be infinite."""
    return at_s == other_at_s or abs(at_s - other_at_s) <= _FRAME_JITTER_S


def _candidate(view: WorkerView, share: Share, prefix: PromptPrefix | None) -> Candidate:
    keys = () if prefix is None else prefix.keys(view.hello.block_size)
    return Candidate(
        worker_id=view.hello.worker_id,
        compatibility=view.hello.compatibility,
        block_size=view.hello.block_size,
        num_free_blocks=free_estimate(view, share),
        num_backlog_tokens=view.num_backlog_tokens,
        num_running=view.load.num_running,
        num_hit_blocks=view.prefixes.num_hits(keys),
        last_taken=view.last_taken,
        max_backlog_tokens=view.max_backlog_tokens,
    )
