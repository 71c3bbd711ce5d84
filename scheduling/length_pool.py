"""Windows of past lengths on one fixed grid, read as one distribution in O(log n).

The grid is exact below 64 and has 32 steps per power of two above, so that a length is known to
3 %. All windows share it: a quantile of several of them together is found by going down their
binary indexed trees (Fenwick, 1994) side by side. How many lengths they hold does not matter.
"""

import math
from array import array
from collections import OrderedDict, deque
from collections.abc import Hashable, Sequence
from typing import Final

from scheduling.prediction import RequestFeatures

_STEP_BITS: Final = 5
_STEPS: Final = 1 << _STEP_BITS
NUM_BUCKETS: Final = 512
# Lengths are below half of the grid's end; the rest, one power of two, is for those that are only
# known to be longer than a limit and than all others: a bucket for each power of two of the limit.
_NUM_OPEN_BUCKETS: Final = _STEPS
_FIRST_OPEN_BUCKET: Final = NUM_BUCKETS - _NUM_OPEN_BUCKETS
LONGEST: Final = (1 << 19) - 1
# Half of the buckets, a quarter, …, one: the way down a tree.
_DESCENT: Final = tuple(NUM_BUCKETS >> level for level in range(1, NUM_BUCKETS.bit_length()))
# What nobody knows weighs as much as so many answers.
PRIOR_SAMPLES: Final = 4.0
# Sums of weights are rounded: a share that is met exactly counts as not quite met.
_ROUNDING: Final = 1e-9


def bucket_of(length: int) -> int:
    """The bucket of a length in [0, LONGEST]; what is outside counts as the nearer end."""
    return _grid_bucket(min(max(length, 0), LONGEST))


def _grid_bucket(length: int) -> int:
    if length < 2 * _STEPS:
        return length
    shift = length.bit_length() - _STEP_BITS - 1
    return shift * _STEPS + (length >> shift)


def last_of(bucket: int) -> int:
    """The longest length of a bucket."""
    if bucket < 2 * _STEPS:
        return bucket
    shift = bucket // _STEPS - 1
    return ((bucket - shift * _STEPS + 1) << shift) - 1


class LengthWindow:
    """The last `size` lengths of one group, as trees of counts and sums over the grid."""

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a window must hold at least one length, got {size}")
        self._size = size
        self._recent: deque[int] = deque()
        self.counts = array("q", bytes(8 * (NUM_BUCKETS + 1)))
        self._sums = array("q", bytes(8 * (NUM_BUCKETS + 1)))

    def __len__(self) -> int:
        return len(self._recent)

    def add(self, length: int) -> None:
        """Take the length in, and the oldest out where the window is full."""
        if len(self._recent) == self._size:
            oldest = self._recent.popleft()
            self._change(oldest, -1)
        self._recent.append(length)
        self._change(length, 1)

    def up_to(self, bucket: int) -> tuple[int, int]:
        """How many lengths lie in buckets [0, bucket], and their sum."""
        counts, sums = self.counts, self._sums
        index, num, total = bucket + 1, 0, 0
        while index:
            num += counts[index]
            total += sums[index]
            index &= index - 1
        return num, total

    def _change(self, length: int, sign: int) -> None:
        counts, sums = self.counts, self._sums
        index, amount = _grid_bucket(length) + 1, sign * length
        while index <= NUM_BUCKETS:
            counts[index] += sign
            sums[index] += amount
            index += index & -index


# Windows with the weight of each of their lengths.
_Parts = Sequence[tuple[float, LengthWindow]]


class PooledLengths:
    """Lengths of many groups; a group with few of its own borrows from wider ones.

    A group with n lengths takes n / (n + pooling_samples) of the weight that narrower groups left,
    the window of all takes nearly all of the rest, and what then remains stands for the unknown:
    a length of which only the limit is known. Groups are bounded; the one that was not fed for
    longest is forgotten.
    """

    def __init__(self, window: int, pooling_samples: float, max_groups: int) -> None:
        if pooling_samples <= 0:
            raise ValueError(f"pooling_samples must be positive, got {pooling_samples}")
        if max_groups < 1:
            raise ValueError(f"max_groups must be at least 1, got {max_groups}")
        self._window = window
        self._pooling_samples = pooling_samples
        self._max_groups = max_groups
        self._groups: OrderedDict[Hashable, LengthWindow] = OrderedDict()
        self._all = LengthWindow(window)
        self._fraction = 0.0

    @property
    def num_groups(self) -> int:
        """Groups that are remembered."""
        return len(self._groups)

    def add(self, keys: Sequence[Hashable], length: int) -> None:
        """Feed the groups of these keys, and the window of all."""
        self._feed(keys, min(max(length, 0), LONGEST))

    def add_cut(self, keys: Sequence[Hashable], at_least: int) -> int | None:
        """Feed a length that was cut off at `at_least`: it is taken for one of those that are known
        to be as long, in turn over all of them, and that one is returned.

        None if it is longer than all that are known. Those that were cut off earlier say nothing of
        what lies beyond this one, those that were cut off later do.
        """
        parts, unknown = self._parts(keys)
        low = bucket_of(at_least - 1)
        own = _FIRST_OPEN_BUCKET + min(at_least.bit_length(), _NUM_OPEN_BUCKETS - 1)
        below = _mass(parts, low)
        known = _mass(parts, _FIRST_OPEN_BUCKET - 1) - below
        open_below = _mass(parts, own)
        still_open = 1.0 - unknown - open_below
        # Evenly over (0, 1) without a generator: multiples of the golden ratio.
        self._fraction = (self._fraction + 0.6180339887498949) % 1.0
        chance = self._fraction * (known + still_open)
        if chance < known and known > _ROUNDING:
            length = min(LONGEST, max(at_least, last_of(_descend(parts, below + chance))))
            self._feed(keys, length)
            return length
        if still_open > _ROUNDING:
            own = max(own, _descend(parts, open_below + chance - known))
        self._feed(keys, last_of(own))
        return None

    def _feed(self, keys: Sequence[Hashable], length: int) -> None:
        for key in keys:
            group = self._groups.get(key)
            if group is None:
                if len(self._groups) >= self._max_groups:
                    self._groups.popitem(last=False)
                group = self._groups[key] = LengthWindow(self._window)
            self._groups.move_to_end(key)
            group.add(length)
        self._all.add(length)

    def summary(
        self, keys: Sequence[Hashable], share: float, more_than: int, at_most: int
    ) -> tuple[float, int]:
        """Mean, and the length that `share` of the lengths do not exceed, of min(length, at_most).

        Keys go from narrow to wide. Only lengths above `more_than` count, to the grid's precision.
        """
        parts, unknown = self._parts(keys)
        low = bucket_of(more_than)
        high = max(low, bucket_of(at_most) - 1)
        below = longer = between = 0.0
        for weight, window in parts:
            num_low, sum_low = window.up_to(low)
            num_high, sum_high = window.up_to(high)
            below += weight * num_low
            between += weight * (sum_high - sum_low)
            longer += weight * (len(window) - num_high)
        survivors = max(0.0, 1.0 - unknown - below)
        tail = survivors + unknown
        mean = (between + longer * at_most + unknown * _unknown_mean(more_than, at_most)) / tail
        wanted = share * tail * (1 + _ROUNDING)
        if wanted >= survivors:
            return mean, at_most
        bucket = _descend(parts, below + wanted)
        return mean, at_most if bucket >= _FIRST_OPEN_BUCKET else min(at_most, last_of(bucket))

    def _parts(self, keys: Sequence[Hashable]) -> tuple[_Parts, float]:
        """Windows with weights, and the weight of the unknown, which is never 0."""
        left = 1.0
        parts: list[tuple[float, LengthWindow]] = []
        for key in keys:
            group = self._groups.get(key)
            if group is not None:
                num_lengths = len(group)
                weight = left / (num_lengths + self._pooling_samples)
                parts.append((weight, group))
                left -= weight * num_lengths
        num_lengths = len(self._all)
        if num_lengths:
            weight = left / (num_lengths + PRIOR_SAMPLES)
            parts.append((weight, self._all))
            left -= weight * num_lengths
        return parts, left


def _unknown_mean(more_than: int, at_most: int) -> float:
    """Of a length of which only the limits are known: every scale is as likely as any other."""
    least = more_than + 1
    return float(at_most) if at_most <= least else (at_most - least) / math.log(at_most / least)


def _mass(parts: _Parts, bucket: int) -> float:
    mass = 0.0
    for weight, window in parts:
        mass += weight * window.up_to(bucket)[0]
    return mass


def _descend(parts: _Parts, mass: float) -> int:
    """The first bucket up to which the windows together hold this weight."""
    position = 0
    weighted = [(weight, window.counts) for weight, window in parts]
    for step in _DESCENT:
        index, there = position + step, 0.0
        for weight, counts in weighted:
            there += weight * counts[index]
        if there < mass:
            position += step
            mass -= there
    return position


def groups_of(features: RequestFeatures) -> tuple[Hashable, ...]:
    """Keys of the requests that it is like, from narrow to wide: of the same tenant and class, with
    a prompt of about the same length (one power of two), and then with any prompt."""
    group = (features.tenant, features.request_class)
    return (*group, features.num_prompt_tokens.bit_length()), group
