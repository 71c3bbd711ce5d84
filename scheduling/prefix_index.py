"""Which prefixes a worker has cached: what the worker tells, and what a router remembers of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scheduling.prefix_chain import PrefixKey


@dataclass(frozen=True, slots=True)
class PrefixChanges:
    """Cached blocks that came and went since the last time."""

    added: tuple[PrefixKey, ...] = ()
    removed: tuple[PrefixKey, ...] = ()
    # Forget everything told before.
    is_snapshot: bool = False


class PrefixJournal:
    """The worker's side: gathers changes until somebody takes them."""

    def __init__(self) -> None:
        # True: came, False: went. What came and went again in between is not told; bounded by the
        # blocks of the pool, for which one of two keys is told.
        self._change_by_key: dict[PrefixKey, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._change_by_key)

    def note(self, key: PrefixKey, is_there: bool) -> None:
        """A cached block came or went."""
        if self._change_by_key.get(key, is_there) is not is_there:
            del self._change_by_key[key]
        else:
            self._change_by_key[key] = is_there

    def extend(self, changes: PrefixChanges) -> None:
        """The same for all of these."""
        for key in changes.added:
            self.note(key, True)
        for key in changes.removed:
            self.note(key, False)

    def take(self) -> PrefixChanges:
        """The changes since the last call."""
        changes, self._change_by_key = self._change_by_key, {}
        return PrefixChanges(
            tuple(key for key, is_there in changes.items() if is_there),
            tuple(key for key, is_there in changes.items() if not is_there),
        )


class PrefixIndex:
    """The router's side: what one worker has, and what its prompts under way will leave there.

    A hint: it may lag behind the worker, which alone decides what is shared.
    """

    def __init__(self, max_keys: int) -> None:
        # The worker's own blocks: it cannot have more cached.
        self._max_keys = max_keys
        self._there: set[PrefixKey] = set()
        # Prompts on the worker, or on their way to it, that have this block.
        self._num_expected: dict[PrefixKey, int] = {}

    def __len__(self) -> int:
        return len(self._there)

    def apply(self, changes: PrefixChanges) -> None:
        """A frame told what came and went."""
        if changes.is_snapshot:
            self._there.clear()
        self._there.difference_update(changes.removed)
        room = self._max_keys - len(self._there)
        self._there.update(changes.added[: max(0, room)])

    def expect(self, keys: Iterable[PrefixKey]) -> None:
        """A prompt with these blocks is sent there."""
        for key in keys:
            self._num_expected[key] = self._num_expected.get(key, 0) + 1

    def expect_no_more(self, keys: Iterable[PrefixKey]) -> None:
        """That prompt is gone; what it left there the worker has told."""
        for key in keys:
            left = self._num_expected[key] - 1
            if left:
                self._num_expected[key] = left
            else:
                del self._num_expected[key]

    @property
    def num_expected(self) -> int:
        """Blocks of prompts that are there or on their way."""
        return len(self._num_expected)

    def num_hits(self, keys: Sequence[PrefixKey]) -> int:
        """How many of a prompt's first blocks are there or will be.

        By bisection, as the end of a chain is evicted before its beginning: a gap, which may occur,
        makes the answer wrong and the placement a little worse.
        """
        low, high = 0, len(keys)
        while low < high:
            middle = (low + high) // 2
            if keys[middle] in self._there or keys[middle] in self._num_expected:
                low = middle + 1
            else:
                high = middle
        return low
