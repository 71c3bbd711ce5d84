"""Tables of what `python -m benchmarks.scheduling.ablations` measured, as Markdown.

Run: python -m benchmarks.scheduling.ablation_report FILE.jsonl [MORE ..] [--json FILE]
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.scheduling.cell_log import Entry
from benchmarks.scheduling.ratios import (
    Figure,
    common,
    has_no_limit,
    pairs_of,
    rate_per_gpu,
    ratios,
)
from benchmarks.scheduling.report_command import run_report
from benchmarks.scheduling.variants import BASES, VARIANTS, Expected, Variant

# A rate is found to within 5 %, and what follows from chance is as large: no difference.
_NO_DIFFERENCE = 1.05
# Of a figure that depends on what else the machine does.
_NO_DIFFERENCE_IN_TIME = 1.25


def main() -> int:
    measured_by = "benchmarks.scheduling.ablations"
    return run_report("benchmarks.scheduling.ablation_report", measured_by, markdown)


def markdown(entries: Sequence[Entry]) -> str:
    """All tables of those policies that were measured."""
    parts: list[str] = []
    for base in BASES:
        parts += [gains(entries, base), rates(entries, base), beside_published(entries, base)]
    return "\n\n".join(part for part in parts if part)


def _of_roles(name: str) -> Figure:
    """A sum over roles, or, where there is one role, its figure."""

    def figure(entry: Entry) -> float | None:
        if entry["common"] is None:
            return None
        return math.fsum(role[name] for role in entry["common"]["roles"].values())

    return figure


def _wait_with_kv(entry: Entry) -> float | None:
    """Seconds in which a request's prompt is computed and its answer waits for room."""
    if entry["common"] is None:
        return None
    return float(entry["common"]["phases_s"].get("generation_queued", 0.0))


_CPU_TIME = "cpu time"
FIGURES: Mapping[str, Figure] = {
    "goodput": rate_per_gpu,
    "attainment": common("slo_attainment"),
    "JCT": common("jct_s", "mean"),
    "TTFT p99": common("ttft_ms", "p99"),
    "TBT p99": common("tbt_ms", "p99"),
    "KVC written": common("kvc_written_share"),
    "running": _of_roles("mean_running"),
    "forward size": _of_roles("iteration_tokens"),
    _CPU_TIME: common("cpu_us_per_request"),
    "wait with KV": _wait_with_kv,
    "preemptions": common("preemptions"),
}
# Those that are told as sums over pairs: in many runs there are none.
_SUMS = ("preemptions",)
_SHOWN = tuple(name for name in FIGURES if name not in (*_SUMS, "wait with KV", _CPU_TIME))


def gains(entries: Sequence[Entry], base: str) -> str:
    """With the mechanism over without it, a row for each mechanism; "" where none was measured."""
    lines = []
    for variant in _variants(base):
        goodput = ratios(entries, base, variant.subject.name, rate_per_gpu)
        found = {name: _ratio(entries, variant, name) for name in _SHOWN}
        if all(value is None for value in found.values()):
            continue
        finite = goodput.finite
        span = f" ({min(finite):.2f} to {max(finite):.2f})" if len(finite) > 1 else ""
        cells = [
            variant.without,
            str(_num_cells(entries, variant)),
            _times(found["goodput"]) + span,
            *(_times(found[name]) for name in _SHOWN[1:]),
            _sums(entries, variant),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if not lines:
        return ""
    names = ["goodput (lowest to highest)", *_SHOWN[1:], "preemptions, with and without"]
    head = [f"| `{base}` over itself without | pairs | {' | '.join(names)} |"]
    return "\n".join([*head, "|---" * (len(names) + 2) + "|", *lines])


def rates(entries: Sequence[Entry], base: str) -> str:
    """Goodput with and without, a row for each pair."""
    by_cell = {(e["trace"], e["hardware"], e["policy"]): e for e in entries}
    names = [base, *(v.subject.name for v in _variants(base) if _num_cells(entries, v))]
    if len(names) == 1:
        return ""
    heads = [f"`{base}`", *(name.partition(" - ")[2] for name in names[1:])]
    lines = [f"| trace, hardware | {' | '.join(heads)} |", "|---" * (len(names) + 1) + "|"]
    for trace, hardware in pairs_of(entries):
        row = [by_cell.get((trace, hardware, name)) for name in names]
        if any(row):
            cells = [_rate(entry) for entry in row]
            lines.append(f"| {trace}, {hardware} | {' | '.join(cells)} |")
    title = "Goodput, requests per second and GPU; + where no rate that was tried failed:"
    return "\n".join([title, "", *lines])


@dataclass(frozen=True, slots=True)
class Direction:
    """Which way a figure goes without a mechanism, pair by pair."""

    num_as_published: int
    num_other_way: int
    num_alike: int

    @property
    def word(self) -> str:
        """What the pairs say together."""
        if not self.num_as_published and not self.num_other_way:
            return "no difference"
        if self.num_as_published == self.num_other_way:
            return "both ways"
        is_so = self.num_as_published > self.num_other_way
        return "as published" if is_so else "**the other way**"


def direction(entries: Sequence[Entry], variant: Variant, expected: Expected) -> Direction | None:
    """None where no pair was measured with and without."""
    values = _with_and_without(entries, variant, FIGURES[expected.figure])
    if not values:
        return None
    least = _NO_DIFFERENCE_IN_TIME if expected.figure == _CPU_TIME else _NO_DIFFERENCE
    as_published = other_way = 0
    for with_it, without_it in values:
        low, high = sorted((with_it, without_it))
        if high <= least * low:
            continue
        is_higher_without = without_it > with_it
        as_published += is_higher_without == expected.is_higher_without
        other_way += is_higher_without != expected.is_higher_without
    alike = len(values) - as_published - other_way
    return Direction(as_published, other_way, alike)


def beside_published(entries: Sequence[Entry], base: str) -> str:
    """A row for each direction that a paper tells; "" where there is none."""
    lines = []
    for variant in _variants(base):
        for expected in variant.expected:
            found = direction(entries, variant, expected)
            if found is None:
                continue
            way = "higher" if expected.is_higher_without else "lower"
            counts = (found.num_as_published, found.num_other_way, found.num_alike)
            cells = [
                variant.without,
                f"{expected.figure} {way} ({expected.source})",
                found.word,
                " / ".join(map(str, counts)),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    if not lines:
        return ""
    head = [
        f"| `{base}` without | published | here | pairs: so / the other way / no difference |",
        "|---|---|---|---|",
    ]
    return "\n".join([*head, *lines])


def _variants(base: str) -> list[Variant]:
    return [variant for variant in VARIANTS if variant.base == base]


def _ratio(entries: Sequence[Entry], variant: Variant, name: str) -> float | None:
    return ratios(entries, variant.base, variant.subject.name, FIGURES[name]).geometric_mean


def _num_cells(entries: Sequence[Entry], variant: Variant) -> int:
    return len(_with_and_without(entries, variant, FIGURES["attainment"]))


def _sums(entries: Sequence[Entry], variant: Variant) -> str:
    values = _with_and_without(entries, variant, FIGURES["preemptions"])
    return f"{sum(one for one, _ in values):.0f}, {sum(one for _, one in values):.0f}"


def _with_and_without(
    entries: Sequence[Entry], variant: Variant, figure: Figure
) -> list[tuple[float, float]]:
    by_cell = {(e["trace"], e["hardware"], e["policy"]): e for e in entries}
    found = []
    for trace, hardware in pairs_of(entries):
        one = by_cell.get((trace, hardware, variant.base))
        other = by_cell.get((trace, hardware, variant.subject.name))
        if one is None or other is None:
            continue
        with_it, without_it = figure(one), figure(other)
        if with_it is not None and without_it is not None:
            found.append((with_it, without_it))
    return found


def _rate(entry: Entry | None) -> str:
    if entry is None:
        return ""
    if entry["common"] is None:
        return "-"
    if entry["goodput"] is None:
        return "none"
    return f"{entry['goodput']['rps_per_gpu']:.3g}{' +' if has_no_limit(entry) else ''}"


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(main())
