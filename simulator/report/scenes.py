"""Which runs are drawn together: all policies and rates of one trace, and which rate in detail."""

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.metrics.summary import RunResult
from simulator.report.columns import labels, three_digits

# What counts as serving a load: goodput is the highest rate with this attainment.
GOAL_ATTAINMENT = 0.9


@dataclass(frozen=True, slots=True)
class Line:
    """One policy on one cluster, at ascending rates."""

    label: str
    results: tuple[RunResult, ...]

    def at(self, rate_scale: float) -> RunResult | None:
        """The run at a rate, if there is one."""
        return next((one for one in self.results if one.facts.rate_scale == rate_scale), None)


@dataclass(frozen=True, slots=True)
class Scene:
    """At least one line."""

    trace: str
    hardware: str
    lines: tuple[Line, ...]
    # Drawn in detail: the highest rate at which some policy still serves, else the lowest.
    rate_scale: float

    @property
    def rate_scales(self) -> tuple[float, ...]:
        """All rates, ascending."""
        return tuple(sorted({r.facts.rate_scale for line in self.lines for r in line.results}))

    @property
    def shown(self) -> tuple[tuple[int, str, RunResult], ...]:
        """Position of the line, label and run, for what is drawn in detail."""
        runs = ((number, line, line.at(self.rate_scale)) for number, line in enumerate(self.lines))
        return tuple((number, line.label, run) for number, line, run in runs if run is not None)

    def titled(self, what: str) -> str:
        """The title of a figure that shows the rate in detail."""
        offered = self.shown[0][2].offered_rps
        rate = "all requests at once" if offered is None else f"{three_digits(offered)} requests/s"
        return f"{self.trace} on {self.hardware}, {rate}: {what}"


def scenes(results: Sequence[RunResult]) -> list[Scene]:
    """One for each trace, hardware and set of goals, in the order in which they appear."""
    by_key: dict[tuple[str, str, str], list[RunResult]] = {}
    for result in results:
        facts = result.facts
        by_key.setdefault((facts.trace, facts.hardware, facts.slo), []).append(result)
    return [_scene(same) for same in by_key.values()]


def _scene(results: Sequence[RunResult]) -> Scene:
    named = labels([{"policy": one.facts.policy, "cluster": one.facts.cluster} for one in results])
    by_label: dict[str, list[RunResult]] = {}
    for name, result in zip(named, results, strict=True):
        by_label.setdefault(name, []).append(result)
    lines = tuple(
        Line(name, tuple(sorted(same, key=lambda one: one.facts.rate_scale)))
        for name, same in by_label.items()
    )
    served = [one for one in results if one.slo_attainment >= GOAL_ATTAINMENT]
    rate_scales = [one.facts.rate_scale for one in served]
    lowest = min(one.facts.rate_scale for one in results)
    first = results[0].facts
    return Scene(first.trace, first.hardware, lines, max(rate_scales, default=lowest))
