"""The workers that a task is sent to, the best first, found without a look at all of them.

They are the first ones of what `scheduling/placement.py` makes of all candidates. Where nothing of
a prompt is cached, its order of the workers is the same for every task, so it is kept sorted, and
a worker changes its place when something of it has changed. Only where a prefix is to be looked for
are the few that may be preferred compared for the task.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from router.events import GENERAL, GROWTH, PREFILL_LEG, Share
from router.fleet import Fleet
from router.worker_view import WorkerView, free_estimate, is_open_to_some, may_be_asked
from scheduling.block_pool import num_blocks_for
from scheduling.ids import WorkerId
from scheduling.placement import (
    Candidate,
    decode_preferences,
    mixed_preferences,
    prefill_preferences,
)
from scheduling.prefix_chain import PromptPrefix

# Of one task: whoever is preferred less is asked when all of these have refused and time has
# passed. A ledger looks at each of them.
MAX_PREFERENCES = 8

_Key = tuple[int | str, ...]
_IsFit = Callable[[WorkerView], bool]
_NOWHERE = None, None, None


class Preferences:
    """Sorted lists over a fleet; a change costs O(log n) and the move of some pointers."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        # Those that take new tasks; who refused a moment ago is among them.
        self._prefill = _Sorted()
        self._mixed = _Sorted()
        self._decode = _Sorted()

    def prefill(
        self,
        now: float,
        num_tokens: int,
        num_tokens_at_most: int,
        prefix: PromptPrefix | None,
    ) -> tuple[WorkerView, ...]:
        """See `prefill_preferences`."""
        self._refresh()
        fleet = self._fleet
        if not len(self._prefill):
            return ()

        def is_fit(view: WorkerView) -> bool:
            return (
                view.num_backlog_tokens < view.max_backlog_tokens
                and may_be_asked(view, now)
                and min(view.num_tokens, fleet.max_tokens_beyond(view)) >= num_tokens_at_most
                and free_estimate(view, GENERAL)
                >= num_blocks_for(num_tokens, view.hello.block_size)
            )

        by_backlog = self._prefill.below((self._prefill.max_backlog_tokens,))
        if not self._prefill.is_to_be_searched(prefix):
            return _first_of_one_size(by_backlog, is_fit)
        views = self._prefill.chosen(by_backlog, is_fit, prefix)
        candidates = (fleet.as_candidate(view, GENERAL, prefix) for view in views)
        return self._first(prefill_preferences(candidates, num_tokens))

    def mixed(
        self,
        now: float,
        num_tokens: int,
        num_tokens_at_most: int,
        prefix: PromptPrefix | None,
        num_blocks_for_size: Callable[[int], int],
        has_room: _IsFit | None = None,
        due_at_s: float = math.inf,
    ) -> tuple[WorkerView, ...]:
        """See `mixed_preferences`; with `has_room`, that decides instead of the general share."""
        self._refresh()
        if not len(self._mixed):
            return ()
        num_blocks = {size: num_blocks_for_size(size) for size in self._mixed.block_sizes}
        most_free = next(iter(self._decode))
        share: Share = GENERAL if has_room is None else GROWTH
        if has_room is None and free_estimate(most_free, GENERAL) < min(num_blocks.values()):
            return ()

        def is_fit(view: WorkerView) -> bool:
            return (
                view.num_backlog_tokens < view.max_backlog_tokens
                and may_be_asked(view, now, due_at_s)
                and view.num_tokens >= num_tokens_at_most
                and free_estimate(view, share) >= num_blocks[view.hello.block_size]
                and (has_room is None or has_room(view))
            )

        by_backlog = self._mixed.below((self._mixed.max_backlog_tokens,))
        # By the other share their order is another.
        if share == GENERAL and not self._mixed.is_to_be_searched(prefix):
            return _first_of_one_size(by_backlog, is_fit)
        views = self._mixed.chosen(by_backlog, is_fit, prefix)
        candidates = (self._fleet.as_candidate(view, share, prefix) for view in views)
        return self._first(mixed_preferences(candidates, num_tokens, num_blocks.__getitem__))

    def decode(
        self,
        now: float,
        num_blocks: int,
        compatibility: str,
        share: Share,
        prefix: PromptPrefix | None,
        due_at_s: float = math.inf,
    ) -> tuple[WorkerView, ...]:
        """See `decode_preferences`."""
        if share != GENERAL:  # seldom, and in another order
            candidates = self._fleet.decode_candidates(now, share, prefix, due_at_s)
            return self._first(decode_preferences(candidates, num_blocks, compatibility))
        self._refresh()

        def is_fit(view: WorkerView) -> bool:
            is_compatible = view.hello.compatibility == compatibility
            return is_compatible and may_be_asked(view, now, due_at_s)

        by_room = self._decode.below((1 - num_blocks,))  # with at least as many free
        if not self._decode.is_to_be_searched(prefix):
            # Compatible workers, among which KV travels, have blocks of one size.
            return tuple(islice(filter(is_fit, by_room), MAX_PREFERENCES))
        views = self._decode.chosen(by_room, is_fit, prefix)
        found = (self._fleet.as_candidate(view, GENERAL, prefix) for view in views)
        return self._first(decode_preferences(found, num_blocks, compatibility))

    @property
    def most_free_decode_tokens(self) -> int:
        """What the general share of no decode worker exceeds that takes new tasks."""
        self._refresh()
        most_free = next(iter(self._decode), None)
        if most_free is None:
            return 0
        return free_estimate(most_free, GENERAL) * max(self._decode.block_sizes)

    def check_invariants(self) -> None:
        """Raise AssertionError unless every worker stands where it belongs."""
        self._refresh()
        keys = [(view, _keys_of(view)) for view in self._fleet]
        for index, views in enumerate((self._prefill, self._mixed, self._decode)):
            views.check_invariants([(view, all_of[index]) for view, all_of in keys])

    def _first(self, candidates: Sequence[Candidate]) -> tuple[WorkerView, ...]:
        views = (self._fleet.get(c.worker_id) for c in candidates[:MAX_PREFERENCES])
        return tuple(view for view in views if view is not None)

    def _refresh(self) -> None:
        for worker_id in self._fleet.take_touched():
            view = self._fleet.get(worker_id)
            keys = _NOWHERE if view is None else _keys_of(view)
            for views, key in zip((self._prefill, self._mixed, self._decode), keys, strict=True):
                if key is not None or worker_id in views:
                    views.place(worker_id, view, key)


class _Sorted:
    """Workers of a kind that take new tasks, sorted; the last part of a key is the worker's id."""

    def __init__(self) -> None:
        self._keys: list[_Key] = []
        self._views: list[WorkerView] = []
        self._placed_by_id: dict[WorkerId, tuple[_Key, WorkerView]] = {}
        self.block_sizes: set[int] = set()
        # That of any of them, and of those that were there before.
        self.max_backlog_tokens = 0

    def __len__(self) -> int:
        return len(self._views)

    def __contains__(self, worker_id: WorkerId) -> bool:
        return worker_id in self._placed_by_id

    def __iter__(self) -> Iterator[WorkerView]:
        return iter(self._views)

    def below(self, key: _Key) -> Iterator[WorkerView]:
        """Those whose keys are smaller, in order."""
        return islice(self._views, bisect_left(self._keys, key))

    def is_to_be_searched(self, prefix: PromptPrefix | None) -> bool:
        """Some of them may have something of the prefix."""
        return prefix is not None and any(prefix.keys(size) for size in self.block_sizes)

    def chosen(
        self, in_order: Iterable[WorkerView], is_fit: _IsFit, prefix: PromptPrefix | None
    ) -> list[WorkerView]:
        """The first that fit of those that have nothing of the prefix, and all that have some."""
        hitting = [
            view
            for view in self._views
            if prefix is not None
            and view.prefixes.num_hits(prefix.keys(view.hello.block_size))
            and is_fit(view)
        ]
        ids = {view.hello.worker_id for view in hitting}
        # With some of another block size: which size is taken depends on who comes first.
        others = (view for view in in_order if view.hello.worker_id not in ids and is_fit(view))
        sizes = {view.hello.block_size for view in hitting}
        if len(sizes | self.block_sizes) > 1:
            return [*hitting, *others]
        return [*hitting, *islice(others, MAX_PREFERENCES)]

    def place(self, worker_id: WorkerId, view: WorkerView | None, key: _Key | None) -> None:
        """Something of a worker has changed; no key: it is not, or no more, among them."""
        placed = self._placed_by_id.get(worker_id)
        if placed is not None:
            if placed[0] == key and placed[1] is view:
                return
            index = bisect_left(self._keys, placed[0])
            del self._keys[index], self._views[index], self._placed_by_id[worker_id]
        if view is not None and key is not None:
            index = bisect_left(self._keys, key)
            self._keys.insert(index, key)
            self._views.insert(index, view)
            self._placed_by_id[worker_id] = key, view
            self.block_sizes.add(view.hello.block_size)
            self.max_backlog_tokens = max(self.max_backlog_tokens, view.max_backlog_tokens)

    def check_invariants(self, expected: Iterable[tuple[WorkerView, _Key | None]]) -> None:
        """Raise AssertionError unless all are there, each under its key."""
        key_by_view = {id(view): key for view, key in expected if key is not None}
        assert self._keys == sorted(key_by_view.values()), "a change was not told of"
        assert [key_by_view.get(id(view)) for view in self._views] == self._keys


def _keys_of(view: WorkerView) -> tuple[_Key | None, _Key | None, _Key | None]:
    """Where it stands among prefill, mixed and decode workers."""
    if not is_open_to_some(view):
        return _NOWHERE
    free, worker_id = free_estimate(view, GENERAL), view.hello.worker_id
    if view.role == PREFILL_LEG:
        return (view.num_backlog_tokens, -free, worker_id), None, None
    by_room = -free, view.load.num_running, view.last_taken, worker_id
    mixed = (view.num_backlog_tokens, *by_room) if view.takes_prompts else None
    return None, mixed, by_room


def _first_of_one_size(views: Iterable[WorkerView], is_fit: _IsFit) -> tuple[WorkerView, ...]:
    """The first that fit, with blocks as large as the first one's."""
    found: list[WorkerView] = []
    for view in views:
        if is_fit(view) and (not found or view.hello.block_size == found[0].hello.block_size):
            found.append(view)
            if len(found) == MAX_PREFERENCES:
                break
    return tuple(found)
