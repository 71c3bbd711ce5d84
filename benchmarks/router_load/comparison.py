"""What the repeats of the router's benchmark say beside the peers and beside the targets."""

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.record import Target, spread
from benchmarks.router_load.loads import Figures

HALF_LOAD, ALONE = "short, half load", "half load, fake worker alone"
LEAST_REQUESTS_S = 1000.0
LEAST_TOKENS_PER_CPU_S = 60_000.0
MOST_ADDED_P99_MS = 5.0
# Title, name of the figure, for which loads. The last ones are better the smaller they are.
_COMPARED = (
    ("requests/s", "requests_s", "short"),
    ("tokens/CPU-s", "tokens_per_cpu_s", "streams"),
    ("CPU us/request", "cpu_us_per_request", "short"),
    ("CPU us/token", "cpu_us_per_token", "streams"),
    ("latency p99", "latency_p99_ms", "short"),
    ("gap p99", "gap_p99_ms", "streams"),
)
Rows = Mapping[str, Sequence[Figures]]


def ratio_lines(ours: Mapping[str, Rows], peers: Mapping[str, Rows]) -> list[str]:
    """Ours over each peer's of the same block: median (lowest-highest) over the blocks."""
    lines = []
    for target, rows in ours.items():
        for peer, their_rows in peers.items():
            lines.append(f"\n{target} over {peer}, ratios within a block")
            for plan in (plan for plan in rows if plan in their_rows):
                cells = [
                    f"{title} {spread(found, 2)}"
                    for title, name, kind in _COMPARED
                    if kind in plan and (found := ratios(rows[plan], their_rows[plan], name))
                ]
                lines.append(f"  {plan:<24}{'   '.join(cells)}")
    return lines


def ratios(mine: Sequence[Figures], theirs: Sequence[Figures], name: str) -> list[float]:
    """One a block; blocks in which the peer's figure is nothing are left out."""
    pairs = zip(mine, theirs, strict=False)
    return [ours[name] / other[name] for ours, other in pairs if other[name]]


def ratios_as_json(
    ours: Mapping[str, Rows], peers: Mapping[str, Rows]
) -> dict[str, dict[str, dict[str, dict[str, list[float]]]]]:
    """By target, peer, load and figure."""
    return {
        target: {
            peer: {
                plan: {
                    name: ratios(rows[plan], their_rows[plan], name)
                    for _, name, kind in _COMPARED
                    if kind in plan
                }
                for plan in rows
                if plan in their_rows
            }
            for peer, their_rows in peers.items()
        }
        for target, rows in ours.items()
    }


def added_ms(rows: Rows, name: str) -> list[float]:
    """A quantile through the router less the same one without it, block by block."""
    pairs = zip(rows.get(HALF_LOAD, ()), rows.get(ALONE, ()), strict=False)
    return [through[name] - alone[name] for through, alone in pairs]


def targets_of(target: str, rows: Rows) -> list[Target]:
    """Beside what the project wants of one router process."""
    found = []
    busiest = [plan for plan in rows if plan.startswith("short") and plan != HALF_LOAD]
    if busiest:
        best = max(busiest, key=lambda plan: statistics.median(_all(rows[plan], "requests_s")))
        values = _all(rows[best], "requests_s")
        found.append(Target(f"{target}, requests/s, {best}", values, LEAST_REQUESTS_S, digits=0))
    for plan in (plan for plan in rows if "streams" in plan):
        values = _all(rows[plan], "tokens_per_cpu_s")
        what = f"{target}, delivered tokens/CPU-s, {plan}"
        found.append(Target(what, values, LEAST_TOKENS_PER_CPU_S, digits=0))
    if added := added_ms(rows, "latency_p99_ms"):
        what = f"{target}, added latency p99 in ms at half load"
        found.append(Target(what, tuple(added), MOST_ADDED_P99_MS, is_limit=True))
    return found


def _all(repeats: Sequence[Figures], name: str) -> tuple[float, ...]:
    return tuple(figures[name] for figures in repeats)
