"""The smallest cluster that serves a load: how many workers, and how many of which role.

Pure: whoever asks says how well a cluster did; here a simulation does. More workers of a role are
taken never to do worse, so a few clusters of each size tell about all of it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from simulator.cluster_spec import ClusterSpec


class Shape(StrEnum):
    """Which clusters are looked at."""

    # Only mixed workers.
    MIXED = "mixed"
    # Only prefill and decode workers.
    SPLIT = "split"
    # Both, and some of all three roles that are smaller than either.
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Assessment:
    """How well a cluster did."""

    # Share of the requests that met their goals.
    attainment: float
    # Where it fell short, prefill did more than decode.
    lacks_prefill: bool


@dataclass(frozen=True, slots=True)
class ClusterSearch:
    """How to search."""

    target: float = 0.9
    max_workers: int = 64
    # Clusters that are assessed.
    max_runs: int = 60
    # Sizes around the one that was found that are looked at as well, for a curve.
    num_around: int = 2
    # Where to start: workers that would be busy all the time, for prompts and for answers.
    prefill_demand: float = 1.0
    decode_demand: float = 1.0


@dataclass(frozen=True, slots=True)
class FoundCluster:
    """What a search knows in the end."""

    # The smallest one that serves; None: none was found.
    best: ClusterSpec | None
    # All that were looked at, in that order.
    assessed: tuple[tuple[ClusterSpec, Assessment], ...]
    # The number of runs was spent before the search was through.
    is_cut_short: bool


class _OutOfRuns(Exception):
    """No further cluster may be assessed."""


@dataclass(slots=True)
class _Search:
    settings: ClusterSearch
    assess: Callable[[ClusterSpec], Assessment]
    known: dict[ClusterSpec, Assessment] = field(default_factory=dict)

    def look(self, spec: ClusterSpec) -> Assessment:
        """Each cluster is assessed once."""
        if spec not in self.known:
            if len(self.known) >= self.settings.max_runs:
                raise _OutOfRuns
            self.known[spec] = self.assess(spec)
        return self.known[spec]

    def serves(self, spec: ClusterSpec) -> bool:
        return self.look(spec).attainment >= self.settings.target

    @property
    def best(self) -> ClusterSpec | None:
        """The smallest that serves; of equal ones the one that served best."""
        found = [s for s, a in self.known.items() if a.attainment >= self.settings.target]
        order = {spec: (spec.num_workers, -self.known[spec].attainment) for spec in found}
        return min(found, key=lambda spec: order[spec], default=None)


def smallest_cluster(
    assess: Callable[[ClusterSpec], Assessment], shape: Shape, settings: ClusterSearch
) -> FoundCluster:
    """Search for the smallest cluster of a shape.

    Sizes are tried in growing steps around the demand and then by bisection. Of prefill and decode
    workers of one size, the split is moved by bisection to where more is lacking, and then to its
    neighbours.
    """
    search = _Search(settings, assess)
    is_cut_short = False
    try:
        if shape is not Shape.SPLIT:
            _smallest(search, 1, lambda size: search.serves(ClusterSpec(num_mixed=size)))
        if shape is not Shape.MIXED:
            _smallest(search, 2, lambda size: _some_split_serves(search, size))
        if shape is Shape.ANY:
            _shrink_with_all_roles(search)
        _look_around(search)
    except _OutOfRuns:
        is_cut_short = True
    return FoundCluster(search.best, tuple(search.known.items()), is_cut_short)


def _smallest(search: _Search, least: int, serves: Callable[[int], bool]) -> None:
    settings = search.settings
    demand = round(settings.prefill_demand + settings.decode_demand)
    size = min(max(least, demand), settings.max_workers)
    if size < least:
        return
    # failing < answer <= serving.
    failing, serving, step = least - 1, settings.max_workers + 1, 1
    if serves(size):
        serving = size
        while serving > least:
            size = max(least, serving - step)
            if not serves(size):
                failing = size
                break
            serving, step = size, 2 * step
    else:
        failing = size
        while failing < settings.max_workers:
            size = min(settings.max_workers, failing + step)
            if serves(size):
                serving = size
                break
            failing, step = size, 2 * step
    while serving - failing > 1 and serving <= settings.max_workers:
        middle = (failing + serving) // 2
        if serves(middle):
            serving = middle
        else:
            failing = middle


def _split(num_prefill: int, size: int, num_mixed: int = 0) -> ClusterSpec:
    return ClusterSpec(num_prefill, size - num_prefill - num_mixed, num_mixed)


def _some_split_serves(search: _Search, size: int) -> bool:
    low, high = 1, size - 1
    num_prefill = _likely_prefill(search, size)
    tried: list[int] = []
    while low <= high:
        tried.append(num_prefill)
        if search.serves(_split(num_prefill, size)):
            return True
        if search.look(_split(num_prefill, size)).lacks_prefill:
            low = num_prefill + 1
        else:
            high = num_prefill - 1
        num_prefill = (low + high) // 2
    # What is lacking may have been misjudged near the best split.
    nearest = max(tried, key=lambda number: search.look(_split(number, size)).attainment)
    neighbours = [number for number in (nearest - 1, nearest + 1) if 1 <= number < size]
    return any(search.serves(_split(number, size)) for number in neighbours)


def _likely_prefill(search: _Search, size: int) -> int:
    """As in the best split so far, or as the demand is."""
    settings = search.settings
    share = settings.prefill_demand / (settings.prefill_demand + settings.decode_demand)
    splits = [spec for spec in search.known if spec.num_prefill and not spec.num_mixed]
    if splits:
        best = max(splits, key=lambda spec: search.known[spec].attainment)
        share = best.num_prefill / best.num_workers
    return min(max(1, round(share * size)), size - 1)


def _shrink_with_all_roles(search: _Search) -> None:
    """Some mixed workers beside prefill and decode, as long as that saves a worker."""
    while True:
        best = search.best
        size = 0 if best is None else best.num_workers - 1
        if size < 3:
            return
        for num_mixed in sorted({size // 4, size // 2, 3 * size // 4} - {0}):
            rest = size - num_mixed
            if rest >= 2:
                num_prefill = _likely_prefill(search, rest)
                if search.serves(_split(num_prefill, size, num_mixed)):
                    break
        else:
            return


def _look_around(search: _Search) -> None:
    best = search.best
    if best is None:
        return
    num_around = search.settings.num_around
    for size in range(best.num_workers - num_around, best.num_workers + num_around + 1):
        if size < 1 or size > search.settings.max_workers:
            continue
        if best.num_mixed == best.num_workers:
            search.look(ClusterSpec(num_mixed=size))
        elif size >= 2 and not any(spec.num_workers == size for spec in search.known):
            search.look(_split(_likely_prefill(search, size), size))
