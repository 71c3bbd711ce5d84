"""The highest rate at which a system still does its work: bracketing, bisection, a second look.

What is asked may be anything that says how well it did at a rate; here it is a simulation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class RateSearch:
    """How to search."""

    # A rate serves if at least this share of the requests meets its goals.
    target: float = 0.9
    # The first rate that is tried, in any unit.
    start: float = 1.0
    # The rate found serves, and one that is higher by this factor (1 + tolerance) does not.
    tolerance: float = 0.05
    max_probes: int = 20
    # Rates beyond start times this are not tried.
    max_factor: float = 1024.0
    # Nor are those below start over this.
    max_divisor: float = 1024.0


@dataclass(frozen=True, slots=True)
class Probe:
    """A rate that was tried, and the share that met its goals."""

    rate: float
    attainment: float


class Ending(StrEnum):
    """Why a search ended."""

    # Within the tolerance.
    FOUND = "found"
    # No rate failed, up to the highest one that may be tried.
    NO_LIMIT = "no limit found"
    # No rate served, down to the lowest one that may be tried.
    NOTHING_SERVES = "nothing serves"
    # The number of probes was spent before.
    OUT_OF_PROBES = "out of probes"


@dataclass(frozen=True, slots=True)
class FoundRate:
    """What a search knows in the end."""

    # The highest rate that was tried and served; None: none.
    rate: float | None
    ending: Ending
    # In the order in which they were tried.
    probes: tuple[Probe, ...]
    # No rate that was tried failed below one that served.
    is_monotone: bool


@dataclass(slots=True)
class _Search:
    settings: RateSearch
    attainment_at: Callable[[float], float]
    probes: list[Probe] = field(default_factory=list)

    def serves(self, rate: float) -> bool:
        probe = Probe(rate, self.attainment_at(rate))
        self.probes.append(probe)
        return self._is_served(probe)

    @property
    def has_probes_left(self) -> bool:
        return len(self.probes) < self.settings.max_probes

    @property
    def highest_served(self) -> float | None:
        return max((p.rate for p in self.probes if self._is_served(p)), default=None)

    @property
    def lowest_failed_above(self) -> float | None:
        """The other end of the bracket."""
        served = self.highest_served or 0.0
        failed = (p.rate for p in self.probes if not self._is_served(p) and p.rate > served)
        return min(failed, default=None)

    def found(self, ending: Ending) -> FoundRate:
        failed = [p.rate for p in self.probes if not self._is_served(p)]
        highest = self.highest_served
        is_monotone = highest is None or all(rate > highest for rate in failed)
        return FoundRate(highest, ending, tuple(self.probes), is_monotone)

    def _is_served(self, probe: Probe) -> bool:
        return probe.attainment >= self.settings.target


def highest_rate(attainment_at: Callable[[float], float], settings: RateSearch) -> FoundRate:
    """Search; `attainment_at` is asked once for each probe, at most `max_probes` times.

    The start is doubled or halved until one rate serves and the next does not; the geometric mean
    of the two then halves what lies between. Attainment need not fall steadily with the rate: a
    single dip would end the search too low. So two rates beyond the one that failed, by a quarter
    and by a half, are tried as well, and where one of them serves the search goes on from there.
    The result is the highest rate that was tried and served; a higher one that nobody tried may
    serve too.
    """
    search = _Search(settings, attainment_at)
    ending = _bracket(search)
    while ending is None:
        ending = _bisect(search) or _look_beyond(search)
    return search.found(ending)


def _bracket(search: _Search) -> Ending | None:
    settings = search.settings
    highest, lowest = settings.start * settings.max_factor, settings.start / settings.max_divisor
    rate, rises = settings.start, search.serves(settings.start)
    while search.highest_served is None or search.lowest_failed_above is None:
        rate = rate * 2 if rises else rate / 2
        if not lowest <= rate <= highest:
            return Ending.NO_LIMIT if rises else Ending.NOTHING_SERVES
        if not search.has_probes_left:
            return Ending.OUT_OF_PROBES
        search.serves(rate)
    return None


def _bisect(search: _Search) -> Ending | None:
    while True:
        # What served may lie beyond everything that failed.
        if (ending := _bracket_above(search)) is not None:
            return ending
        low, high = search.highest_served, search.lowest_failed_above
        assert low is not None
        assert high is not None
        if high <= low * (1 + search.settings.tolerance):
            return None
        if not search.has_probes_left:
            return Ending.OUT_OF_PROBES
        search.serves(math.sqrt(low * high))


def _bracket_above(search: _Search) -> Ending | None:
    rate = search.highest_served
    assert rate is not None
    while search.lowest_failed_above is None:
        rate *= 2
        if rate > search.settings.start * search.settings.max_factor:
            return Ending.NO_LIMIT
        if not search.has_probes_left:
            return Ending.OUT_OF_PROBES
        search.serves(rate)
    return None


# Beyond the rate that failed; not where a probe so near has failed already.
_SECOND_LOOKS = (1.25, 1.5)
_NEAR = 0.1


def _look_beyond(search: _Search) -> Ending | None:
    """FOUND if nothing above serves; None if something does, and the search must go on."""
    failed = search.lowest_failed_above
    assert failed is not None
    for factor in _SECOND_LOOKS:
        rate = failed * factor
        if any(abs(probe.rate - rate) <= _NEAR * rate for probe in search.probes):
            continue
        if not search.has_probes_left:
            return Ending.OUT_OF_PROBES
        if search.serves(rate):
            return None
    return Ending.FOUND
