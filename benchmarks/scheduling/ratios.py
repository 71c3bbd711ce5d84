"""One policy beside another, over all cells that both were measured in. Pure."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.scheduling.cells import Cell

Entry = Mapping[str, Any]
Figure = Callable[[Entry], float | None]
# A rate is found to within 5 %: what is nearer is no difference.
LOST_BELOW = 0.95


def rate_per_gpu(entry: Entry) -> float | None:
    """Requests per second and GPU at which 90 % meet their goals; 0 where no rate serves.

    None where no rate failed: the piece was too short to tell.
    """
    if entry["common"] is None or has_no_limit(entry):
        return None
    return float(entry["goodput"]["rps_per_gpu"]) if entry["goodput"] is not None else 0.0


def has_no_limit(entry: Entry) -> bool:
    """Every rate that was tried served."""
    return entry["goodput"] is not None and entry["goodput"]["ending"] == "no limit found"


def common(name: str, part: str | None = None) -> Figure:
    """A figure of the run at the common rate; None where it has none."""

    def figure(entry: Entry) -> float | None:
        if entry["common"] is None:
            return None
        value = entry["common"][name]
        value = value[part] if part is not None else value
        return None if value is None else float(value)

    return figure


@dataclass(frozen=True, slots=True)
class CellRatio:
    """inf where only the first has any, nan where neither has."""

    trace: str
    hardware: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Ratios:
    """Of one figure, one policy over another."""

    cells: tuple[CellRatio, ...]

    @property
    def finite(self) -> tuple[float, ...]:
        """Of cells in which both have some."""
        return tuple(c.ratio for c in self.cells if math.isfinite(c.ratio) and c.ratio > 0)

    @property
    def geometric_mean(self) -> float | None:
        """None without any."""
        logs = [math.log(ratio) for ratio in self.finite]
        return math.exp(math.fsum(logs) / len(logs)) if logs else None

    def below(self, bound: float) -> tuple[CellRatio, ...]:
        """The lowest first."""
        return tuple(sorted((c for c in self.cells if c.ratio < bound), key=lambda c: c.ratio))

    def above(self, bound: float) -> tuple[CellRatio, ...]:
        """The highest first."""
        return tuple(sorted((c for c in self.cells if c.ratio > bound), key=lambda c: -c.ratio))


def ratios(entries: Iterable[Entry], of: str, over: str, figure: Figure) -> Ratios:
    """In the order of the entries."""
    by_cell = {Cell(e["trace"], e["hardware"], e["policy"]): e for e in entries}
    found = []
    for cell, entry in by_cell.items():
        other = by_cell.get(Cell(cell.trace, cell.hardware, over))
        if cell.policy != of or other is None:
            continue
        value, base = figure(entry), figure(other)
        if value is not None and base is not None:
            found.append(CellRatio(cell.trace, cell.hardware, _ratio(value, base)))
    return Ratios(tuple(found))


def sure_losses(
    entries: Iterable[Entry], of: str, over: str, bound: float
) -> tuple[CellRatio, ...]:
    """Cells in which `over` failed at no rate, and served more than `of` does; at most the ratios.

    `ratios` of `rate_per_gpu` leaves these out: how much more it would serve is not known.
    """
    by_cell = {Cell(e["trace"], e["hardware"], e["policy"]): e for e in entries}
    found = []
    for cell, entry in by_cell.items():
        other = by_cell.get(Cell(cell.trace, cell.hardware, over))
        if cell.policy != of or other is None or not has_no_limit(other):
            continue
        value = rate_per_gpu(entry)
        if value is not None:
            ratio = _ratio(value, float(other["goodput"]["rps_per_gpu"]))
            found.append(CellRatio(cell.trace, cell.hardware, ratio))
    return Ratios(tuple(found)).below(bound)


def _ratio(value: float, base: float) -> float:
    if base == 0:
        return math.inf if value > 0 else math.nan
    return value / base


def policies_of(entries: Sequence[Entry]) -> list[str]:
    """In the order in which they were measured."""
    return list(dict.fromkeys(entry["policy"] for entry in entries))


def pairs_of(entries: Sequence[Entry]) -> list[tuple[str, str]]:
    """Trace and hardware, in the order in which they were measured."""
    return list(dict.fromkeys((entry["trace"], entry["hardware"]) for entry in entries))
