"""Where a value stands on an axis, and which values are written there. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# What is nearer to 0 is drawn as 0: no figure of ours is so small.
_LEAST = 1e-12
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Scale:
    """Values between `least` and `most` on the pixels [begin, end]."""

    least: float
    most: float
    begin: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """In pixels; what lies outside stands at the end of the axis."""
        value = min(max(value, self.least), self.most)
        low, high = self._moved(self.least), self._moved(self.most)
        share = (self._moved(value) - low) / (high - low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values, ascending."""
        if self.is_log:
            return _log_ticks(self.least, self.most, most)
        step = _step((self.most - self.least) / (most - 1))
        first = math.ceil(self.least / step - 1e-9)
        last = math.floor(self.most / step + 1e-9)
        return [number * step for number in range(first, last + 1)]

    def _moved(self, value: float) -> float:
        return math.log(value) if self.is_log else value


def scale_of(values: Sequence[float], begin: float, end: float, *, is_log: bool = False) -> Scale:
    """That holds all values, and 0 where it is linear. On a logarithmic one only those above 0."""
    if not is_log:
        most = max([*values, 0.0])
        return Scale(min([*values, 0.0]), most if most > _LEAST else 1.0, begin, end)
    found = [value for value in values if value > _LEAST] or [1.0]
    least, most = min(found), max(found)
    if most < 4 * least:
        # Some room, else two values that hardly differ would fill the figure.
        middle = math.sqrt(least * most)
        least, most = min(least, middle / 3), max(most, middle * 3)
    return Scale(least / 1.1, most * 1.1, begin, end, is_log=True)


def _log_ticks(least: float, most: float, limit: int) -> list[float]:
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(most))
    decades = range(first, last + 1)
    found: list[float] = []
    for factors in ((1, 2, 5), (1, 3), (1,)):
        every = [factor * 10.0**decade for decade in decades for factor in factors]
        found = [value for value in every if least <= value <= most]
        if len(found) <= limit:
            return found
    # Every second decade, third, and so on.
    return found[:: -(-len(found) // limit)]


def _step(about: float) -> float:
    power = 10.0 ** math.floor(math.log10(about))
    return next(power * step for step in _STEPS if power * step >= about * (1 - 1e-9))


def short(value: float) -> str:
    """Three digits; thousands are set apart."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.3g}M"
    if size >= 999.5:
        return f"{value:,.0f}"
    return f"{value:.3g}" if size >= 1e-3 else f"{value:.1e}"
