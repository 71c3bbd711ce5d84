"""What changes over a run, in a fixed number of time bins that widen as the run goes on."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

MAX_BINS = 512
# A power of two, as every width is then: dividing by it and multiplying again loses nothing.
FIRST_WIDTH_S = 1 / 64


@dataclass(frozen=True, slots=True)
class Series:
    """One figure over time: values[i] is the mean over [i * width_s, (i + 1) * width_s).

    nan where there is nothing that could have a mean.
    """

    width_s: float
    values: tuple[float, ...]

    @property
    def middles_s(self) -> tuple[float, ...]:
        """The instant in the middle of each bin."""
        return tuple((index + 0.5) * self.width_s for index in range(len(self.values)))


class TimeBins:
    """Sums in time bins, several columns of them. Time begins at 0."""

    def __init__(self, num_columns: int) -> None:
        self.width_s = FIRST_WIDTH_S
        self.columns = [array("d", bytes(8 * MAX_BINS)) for _ in range(num_columns)]

    def put(self, at_s: float, values: Sequence[float]) -> None:
        """Add to each column's bin of one instant."""
        if at_s >= self.width_s * MAX_BINS:
            self.reach(at_s)
        index = int(at_s / self.width_s)
        for column, value in zip(self.columns, values, strict=True):
            column[index] += value

    def spread(self, column: int, begin_s: float, end_s: float, rate: float) -> None:
        """Add rate * time to every bin of a column that [begin_s, end_s) touches."""
        if end_s >= self.width_s * MAX_BINS:
            self.reach(end_s)
        width_s = self.width_s
        values, index = self.columns[column], int(begin_s / width_s)
        until_s = (index + 1) * width_s
        while until_s < end_s:
            values[index] += rate * (until_s - begin_s)
            begin_s = until_s
            index += 1
            until_s = (index + 1) * width_s
        if begin_s < end_s:
            values[index] += rate * (end_s - begin_s)

    def num_bins(self, end_s: float) -> int:
        """How many bins [0, end_s) touches."""
        return min(MAX_BINS, -int(-end_s // self.width_s))

    def widen(self, width_s: float) -> None:
        """Bins of that width, which is one that they could come to have by themselves."""
        while self.width_s < width_s:
            for number, column in enumerate(self.columns):
                pairs = zip(column[::2], column[1::2], strict=True)
                halved = array("d", (first + second for first, second in pairs))
                self.columns[number] = halved + array("d", bytes(8 * (MAX_BINS - len(halved))))
            self.width_s *= 2

    def reach(self, at_s: float) -> None:
        """Bins so wide that one is there for that instant."""
        while at_s >= self.width_s * MAX_BINS:
            self.widen(2 * self.width_s)


class StepSeries:
    """Figures that keep their value until they are set again; means are weighted by time.

    A change costs nothing for those that stay the same.
    """

    def __init__(self, num_lines: int, measured_from_s: float = 0.0) -> None:
        self._values = [0.0] * num_lines
        # What is counted in totals and bins of each: up to when.
        self._counted_to_s = [0.0] * num_lines
        self._totals = [0.0] * num_lines
        self._bins = TimeBins(num_lines)
        self._now_s = 0.0
        # Bins show everything; means over the run begin here.
        self._measured_from_s = measured_from_s

    def hold(self, at_s: float, values: Sequence[float]) -> None:
        """From now on the figures are these. Time does not run backwards."""
        self._move_on(at_s)
        for line, value in enumerate(values):
            if value != self._values[line]:
                self._count(line)
                self._values[line] = value

    def change(self, at_s: float, differences: Sequence[float]) -> None:
        """From now on the figures are so much more."""
        self._move_on(at_s)
        for line, difference in enumerate(differences):
            if difference:
                self._count(line)
                self._values[line] += difference

    def add(self, line: int, begin_s: float, end_s: float, value: float) -> None:
        """One figure was so much more for a while that is over; what it is now does not change."""
        self._bins.spread(line, begin_s, end_s, value)
        if begin_s < self._measured_from_s:
            begin_s = self._measured_from_s
        if begin_s < end_s:
            self._totals[line] += value * (end_s - begin_s)

    def advance(self, to_s: float) -> None:
        """Nothing has changed until then."""
        self._move_on(to_s)

    def total(self, line: int) -> float:
        """Value times seconds, since measuring began."""
        self._count(line)
        return self._totals[line]

    def mean(self, line: int) -> float:
        """Over the measured time so far; 0 where there was none."""
        measured_s = self._now_s - self._measured_from_s
        return self.total(line) / measured_s if measured_s > 0 else 0.0

    def series(self, line: int) -> Series:
        """Means of all bins up to now; of the last one over the part that has passed."""
        self._count(line)
        self._bins.reach(self._now_s)
        width_s, column = self._bins.width_s, self._bins.columns[line]
        num_bins = self._bins.num_bins(self._now_s)
        lasted_s = [width_s] * (num_bins - 1) + [self._now_s - (num_bins - 1) * width_s]
        means = zip(column, lasted_s, strict=False) if num_bins else ()
        return Series(width_s, tuple(total / seconds for total, seconds in means))

    def _move_on(self, to_s: float) -> None:
        assert to_s >= self._now_s, f"time runs backwards, from {self._now_s} to {to_s}"
        self._now_s = to_s

    def _count(self, line: int) -> None:
        begin_s, end_s, value = self._counted_to_s[line], self._now_s, self._values[line]
        if begin_s == end_s:
            return
        self._counted_to_s[line] = end_s
        if value:
            self.add(line, begin_s, end_s, value)
