"""The workers that a task is sent to, the best first, found without a look at all of them.

They are the first ones of what `scheduling/placement.py` makes of all candidates. Where nothing of
a prompt is cached, its order of the workers is the same for every task, so it is kept sorted, and
a worker changes its place when something of it has changed.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from router.events import GENERAL, GROWTH, PREFILL_LEG, Share
from router.fleet import Fleet, WorkerView, free_estimate, is_open, may_be_asked
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


class Preferences:
    """Sorted lists over a fleet; a change costs O(log n) and the move of some pointers."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._prefill = _Sorted(_prompt_key, lambda view: view.role == PREFILL_LEG)
        self._mixed = _Sorted(_mixed_key, lambda view: view.takes_prompts)
        self._decode = _Sorted(_decode_key, lambda view: view.role != PREFILL_LEG)

    def prefill(
        self,
        now: float,
        num_tokens: int,
        num_tokens_at_most: int,
        max_backlog_tokens: int,
        prefix: PromptPrefix | None,
    ) -> tuple[Candidate, ...]:
        """See `prefill_preferences`."""
        self._refresh()
        fleet = self._fleet
        if not len(self._prefill):
            return ()

        def is_fit(view: WorkerView) -> bool:
            return (
                view.num_backlog_tokens < max_backlog_tokens
                and may_be_asked(view, now)
                and min(view.num_tokens, fleet.max_tokens_beyond(view)) >= num_tokens_at_most
                and free_estimate(view, GENERAL)
                >= num_blocks_for(num_tokens, view.hello.block_size)
            )

        by_backlog = self._prefill.until(lambda view: view.num_backlog_tokens < max_backlog_tokens)
        views = self._chosen(self._prefill, by_backlog, is_fit, prefix)
        candidates = (fleet.as_candidate(view, GENERAL, prefix) for view in views)
        return prefill_preferences(candidates, num_tokens, max_backlog_tokens)[:MAX_PREFERENCES]

    def mixed(
        self,
        now: float,
        num_tokens: int,
        num_tokens_at_most: int,
        max_backlog_tokens: int,
        prefix: PromptPrefix | None,
        num_blocks_for_size: Callable[[int], int],
        has_room: _IsFit | None = None,
    ) -> tuple[Candidate, ...]:
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
                view.num_backlog_tokens < max_backlog_tokens
                and may_be_asked(view, now)
                and view.num_tokens >= num_tokens_at_most
                and free_estimate(view, share) >= num_blocks[view.hello.block_size]
                and (has_room is None or has_room(view))
            )

        by_backlog = self._mixed.until(lambda view: view.num_backlog_tokens < max_backlog_tokens)
        views = self._chosen(self._mixed, by_backlog, is_fit, prefix)
        candidates = (self._fleet.as_candidate(view, share, prefix) for view in views)
        found = mixed_preferences(
            candidates, num_tokens, max_backlog_tokens, num_blocks.__getitem__
        )
        return found[:MAX_PREFERENCES]

    def decode(
        self,
        now: float,
        num_blocks: int,
        compatibility: str,
        share: Share,
        prefix: PromptPrefix | None,
    ) -> tuple[Candidate, ...]:
        """See `decode_preferences`."""
        if share != GENERAL:  # seldom, and in another order
            candidates = self._fleet.decode_candidates(now, share, prefix)
            return decode_preferences(candidates, num_blocks, compatibility)[:MAX_PREFERENCES]
        self._refresh()

        def has_room(view: WorkerView) -> bool:
            return free_estimate(view, GENERAL) >= num_blocks

        def is_fit(view: WorkerView) -> bool:
            is_compatible = view.hello.compatibility == compatibility
            return is_compatible and has_room(view) and may_be_asked(view, now)

        views = self._chosen(self._decode, self._decode.until(has_room), is_fit, prefix)
        found = (self._fleet.as_candidate(view, GENERAL, prefix) for view in views)
        return decode_preferences(found, num_blocks, compatibility)[:MAX_PREFERENCES]

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
        for views in (self._prefill, self._mixed, self._decode):
            views.check_invariants(self._fleet)

    def _chosen(
        self,
        views: "_Sorted",
        in_order: Iterable[WorkerView],
        is_fit: _IsFit,
        prefix: PromptPrefix | None,
    ) -> list[WorkerView]:
        """The first that fit of those that have nothing of the prefix, and all that have some."""
        if prefix is None or not any(prefix.keys(size) for size in views.block_sizes):
            fitting = filter(is_fit, in_order)
            # Compatible workers, among which KV travels, have blocks of one size.
            one_size = fitting if views is self._decode else _of_one_size(fitting)
            return list(islice(one_size, MAX_PREFERENCES))
        hitting = [
            view
            for view in views
            if view.prefixes.num_hits(prefix.keys(view.hello.block_size)) and is_fit(view)
        ]
        ids = {view.hello.worker_id for view in hitting}
        # With some of another block size: which size is taken depends on who comes first.
        others = (view for view in in_order if view.hello.worker_id not in ids and is_fit(view))
        sizes = {view.hello.block_size for view in hitting}
        if len(sizes | views.block_sizes) > 1:
            return [*hitting, *others]
        return [*hitting, *islice(others, MAX_PREFERENCES)]

    def _refresh(self) -> None:
        for worker_id in self._fleet.take_touched():
            view = self._fleet.get(worker_id)
            for views in (self._prefill, self._mixed, self._decode):
                if worker_id in views or (view is not None and views.is_kind(view)):
                    views.place(worker_id, view)


class _Sorted:
    """Workers of a kind that take new tasks, sorted; the last part of a key is the worker's id."""

    def __init__(self, key: Callable[[WorkerView], _Key], is_in: _IsFit) -> None:
        self._key = key
        self.is_kind = is_in
        self._keys: list[_Key] = []
        self._views: list[WorkerView] = []
        self._key_by_id: dict[WorkerId, _Key] = {}
        self.block_sizes: set[int] = set()

    def __len__(self) -> int:
        return len(self._views)

    def __contains__(self, worker_id: WorkerId) -> bool:
        return worker_id in self._key_by_id

    def __iter__(self) -> Iterator[WorkerView]:
        return iter(self._views)

    def until(self, goes_on: _IsFit) -> Iterator[WorkerView]:
        """From the first one on, before the first of which it is not so."""
        for view in self._views:
            if not goes_on(view):
                return
            yield view

    def place(self, worker_id: WorkerId, view: WorkerView | None) -> None:
        """Something of a worker has changed; None: it is gone."""
        known = self._key_by_id.pop(worker_id, None)
        is_in = view is not None and self.is_kind(view) and is_open(view)
        key = self._key(view) if view is not None and is_in else None
        if known is not None:
            index = bisect_left(self._keys, known)
            if key == known and self._views[index] is view:
                self._key_by_id[worker_id] = known
                return
            del self._keys[index], self._views[index]
        if view is not None and key is not None:
            index = bisect_left(self._keys, key)
            self._keys.insert(index, key)
            self._views.insert(index, view)
            self._key_by_id[worker_id] = key
            self.block_sizes.add(view.hello.block_size)

    def check_invariants(self, fleet: Fleet) -> None:
        """Raise AssertionError unless all are there, each under its key."""
        views = [view for view in fleet if self.is_kind(view) and is_open(view)]
        assert self._keys == sorted(map(self._key, views)), "a change was not told of"
        assert [self._key(view) for view in self._views] == self._keys


def _prompt_key(view: WorkerView) -> _Key:
    return view.num_backlog_tokens, -free_estimate(view, GENERAL), view.hello.worker_id


def _mixed_key(view: WorkerView) -> _Key:
    return view.num_backlog_tokens, *_decode_key(view)


def _decode_key(view: WorkerView) -> _Key:
    free = free_estimate(view, GENERAL)
    return -free, view.load.num_running, view.last_taken, view.hello.worker_id


def _of_one_size(views: Iterable[WorkerView]) -> Iterator[WorkerView]:
    """Those with blocks as large as the first one's."""
    size = 0
    for view in views:
        size = size or view.hello.block_size
        if view.hello.block_size == size:
            yield view
