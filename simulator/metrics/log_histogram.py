"""Any number of durations in a few kilobytes, with a known error.

A value counts in the bucket that the upper half of its 32-bit float names: sign, exponent and the
first seven bits of the mantissa. So a doubling has 128 buckets of equal width, nothing is computed
to find one, and every platform finds the same.
"""

import struct
import sys
from array import array
from bisect import bisect_right
from collections import Counter
from itertools import accumulate

# Of a value that is read back: half a bucket over its lower end is 1/256, and rounding to 32 bits.
MAX_RELATIVE_ERROR = 0.004
_UPPER_HALF = 1 if sys.byteorder == "little" else 0


class LogHistogram:
    """Counts of finite values >= 0; at most 32,640 buckets, in practice some hundreds."""

    def __init__(self) -> None:
        self._count_by_bucket: Counter[int] = Counter()

    def __len__(self) -> int:
        return self._count_by_bucket.total()

    def add_all(self, values: "array[float]") -> None:
        """Count each; `values` has type code "f"."""
        assert values.typecode == "f"
        halves = memoryview(values).cast("B").cast("H")
        self._count_by_bucket.update(halves[_UPPER_HALF::2].tolist())

    def merge(self, other: "LogHistogram") -> None:
        """Count what another has counted as well."""
        self._count_by_bucket.update(other._count_by_bucket)

    def ordered(self, smallest: float, largest: float) -> "OrderedBuckets":
        """The values in ascending order, each off by MAX_RELATIVE_ERROR at most.

        The true ends are known to whoever counted, and no value is given beyond them.
        """
        buckets = sorted(self._count_by_bucket.items())
        values = [min(max(_middle(bucket), smallest), largest) for bucket, _ in buckets]
        return OrderedBuckets(values, list(accumulate(count for _, count in buckets)))


class OrderedBuckets:
    """A sequence of values by rank that stores each different one once."""

    def __init__(self, values: list[float], ends: list[int]) -> None:
        self.values = values
        # The number of values up to and including each of `values`.
        self.ends = ends

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, rank: int, /) -> float:
        return self.values[bisect_right(self.ends, rank)]


def _middle(bucket: int) -> float:
    if bucket == 0:
        return 0.0
    lower, upper = struct.unpack("<ff", struct.pack("<II", bucket << 16, (bucket + 1) << 16))
    return float(lower + upper) / 2
