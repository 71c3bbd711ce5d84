"""Tables of what `python -m benchmarks.scheduling` measured, as Markdown.

Run: python -m benchmarks.scheduling.report FILE.jsonl [MORE ..] [--json FILE]
"""

import math
import sys
from collections.abc import Sequence

from benchmarks.scheduling.cell_log import Entry
from benchmarks.scheduling.papers import HEADLINES
from benchmarks.scheduling.ratios import (
    LOST_BELOW,
    Ratios,
    common,
    has_no_limit,
    pairs_of,
    policies_of,
    rate_per_gpu,
    ratios,
    sure_losses,
)
from benchmarks.scheduling.report_command import run_report

_OURS = "default"
_ORACLE = "oracle"


def main() -> int:
    return run_report("benchmarks.scheduling.report", "benchmarks.scheduling", markdown)


def markdown(entries: Sequence[Entry]) -> str:
    """All tables."""
    parts = [
        beside_baselines(entries),
        where_it_loses(entries),
        beside_papers(entries),
        rates(entries),
        *(one_pair(entries, trace, hardware) for trace, hardware in pairs_of(entries)),
    ]
    return "\n\n".join(part for part in parts if part)


def beside_baselines(entries: Sequence[Entry]) -> str:
    """The default over every other policy, over all cells."""
    lines = [
        "| `default` over | cells | goodput per GPU | lowest | highest | GPUs for equal goodput | "
        "attainment | JCT | TTFT p99 | TBT p99 |",
        "|---" * 10 + "|",
    ]
    for name in policies_of(entries):
        if name == _OURS:
            continue
        goodput = ratios(entries, _OURS, name, rate_per_gpu)
        if not goodput.cells:
            continue
        middle = goodput.geometric_mean
        others = (
            common("slo_attainment"),
            common("jct_s", "mean"),
            common("ttft_ms", "p99"),
            common("tbt_ms", "p99"),
        )
        cells = [
            f"`{name}`",
            str(len(goodput.cells)),
            _times(middle),
            _times(min((c.ratio for c in goodput.cells), default=None)),
            _times(max((c.ratio for c in goodput.cells), default=None)),
            "-" if middle is None else f"{100 / middle - 100:+.0f} %",
            *(_times(ratios(entries, _OURS, name, figure).geometric_mean) for figure in others),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def where_it_loses(entries: Sequence[Entry]) -> str:
    """A line for each baseline and cell in which the default has less goodput."""
    lines = []
    for name in policies_of(entries):
        bound = 0.9 if name == _ORACLE else LOST_BELOW
        for cell in ratios(entries, _OURS, name, rate_per_gpu).below(bound):
            lines.append(f"- `{cell.trace}` on {cell.hardware}: {_times(cell.ratio)} of `{name}`")
        for cell in sure_losses(entries, _OURS, name, bound):
            told = f"at most {_times(cell.ratio)} of `{name}`, which failed at no rate"
            lines.append(f"- `{cell.trace}` on {cell.hardware}: {told}")
    if not lines:
        return "The default loses to no baseline in any of these cells."
    return "Where the default has less goodput (more than 5 %, oracle 10 %):\n\n" + "\n".join(lines)


def beside_papers(entries: Sequence[Entry]) -> str:
    """The papers' headline figures, and the same of what we built after them and of the default."""
    lines = [
        "| published | figure | own policy: mean (lowest to highest) | `default` |",
        "|---|---|---|---|",
    ]
    for one in HEADLINES:
        own, ours = (
            _span(ratios(entries, policy, one.base, one.figure)) for policy in (one.policy, _OURS)
        )
        lines.append(f"| {one.text} | ratio to `{one.base}` | `{one.policy}` {own} | {ours} |")
    return "\n".join(lines)


def rates(entries: Sequence[Entry]) -> str:
    """Goodput of everybody, a row for each pair."""
    names = policies_of(entries)
    by_cell = {(e["trace"], e["hardware"], e["policy"]): e for e in entries}
    lines = [
        "| trace, hardware | requests (too long) | " + " | ".join(f"`{n}`" for n in names) + " |",
        "|---|---|" + "---|" * len(names),
    ]
    for trace, hardware in pairs_of(entries):
        row = [by_cell.get((trace, hardware, name)) for name in names]
        first = next(entry for entry in row if entry is not None)
        about = f"{first['requests']} ({first['too_long']})"
        cells = [_rate(entry) for entry in row]
        lines.append(f"| {trace}, {hardware} | {about} | " + " | ".join(cells) + " |")
    head = (
        "Highest rate at which 90 % meet their goals, requests per second and GPU; + where no rate "
        "that was tried failed:\n\n"
    )
    return head + "\n".join(lines)


def one_pair(entries: Sequence[Entry], trace: str, hardware: str) -> str:
    """What happened at the common rate."""
    chosen = [
        entry
        for entry in entries
        if (entry["trace"], entry["hardware"]) == (trace, hardware) and entry["common"] is not None
    ]
    if not chosen:
        return f"`{trace}` on {hardware}: every prompt is too long for a worker."
    first = chosen[0]
    lines = [
        f"`{trace}` on {hardware}, {first['slo']}, at {first['common']['offered_rps']:.3g} req/s:",
        "",
        "| policy | attained | req/s | JCT mean | TTFT p50 | TTFT p99 | TBT p99 | TPOT p99 | "
        "preemptions | KVC written |",
        "|---" * 10 + "|",
    ]
    for entry in chosen:
        one = entry["common"]
        cells = [
            f"`{entry['policy']}`",
            f"{100 * one['slo_attainment']:.1f} %",
            f"{one['throughput_rps']:.3g}",
            _value(one["jct_s"]["mean"], " s"),
            _value(one["ttft_ms"]["p50"], " ms"),
            _value(one["ttft_ms"]["p99"], " ms"),
            _value(one["tbt_ms"]["p99"], " ms"),
            _value(one["tpot_ms"]["p99"], " ms"),
            str(one["preemptions"]),
            f"{100 * one['kvc_written_share']:.0f} %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rate(entry: Entry | None) -> str:
    if entry is None:
        return ""
    if entry["common"] is None:
        return "-"
    if entry["goodput"] is None:
        return "none"
    mark = " +" if has_no_limit(entry) else ""
    return f"{entry['goodput']['rps_per_gpu']:.3g}{mark}"


def _span(found: Ratios) -> str:
    if found.geometric_mean is None:
        return "-"
    ends = f"{_times(min(found.finite))} to {_times(max(found.finite))}"
    return f"{_times(found.geometric_mean)} ({ends})"


def _times(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return "only ours" if math.isinf(value) else f"{value:.2f}"


def _value(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.3g}{unit}" if value < 1000 else f"{value:.0f}{unit}"


if __name__ == "__main__":
    sys.exit(main())
