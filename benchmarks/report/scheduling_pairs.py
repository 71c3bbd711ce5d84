"""One trace on one hardware: everybody's goodput, and what happens at the common rate."""

from collections.abc import Callable, Mapping, Sequence
from html import escape

from benchmarks.report.charts import (
    Axis,
    Bar,
    Line,
    Mark,
    Panel,
    Row,
    Spread,
    bar_panels,
    line_chart,
    spread_chart,
)
from benchmarks.report.fields import Results
from benchmarks.report.markup import figure, folded, side_by_side
from benchmarks.report.prose import table
from benchmarks.report.scales import short
from benchmarks.report.scheduling_cells import CellGroup
from benchmarks.scheduling.cells import POLICY_ORDER
from benchmarks.scheduling.ratios import Entry, common, has_no_limit, rate_per_gpu

OURS, ORACLE = "default", "oracle"
# What counts as serving.
_LEVEL = 0.9


def row_of(policy: str) -> Row:
    """A policy looks the same in every figure."""
    if policy in POLICY_ORDER:
        return Row(policy, POLICY_ORDER.index(policy))
    return Row(policy, len(POLICY_ORDER) + sum(map(ord, policy)) % 8)


def goodput_bars(group: CellGroup, trace: str, hardware: str) -> str:
    """Of every policy, over that of the default where it has some."""
    entries = group.of_pair(trace, hardware)
    ours = _rate(entries.get(OURS))
    base = ours or 1.0
    marks = [Mark(1.0, OURS)] if ours else []
    oracle = _rate(entries.get(ORACLE))
    if oracle:
        marks.append(Mark(oracle / base, ORACLE))
    bars: list[Bar | None] = []
    for entry in entries.values():
        rate = _rate(entry)
        if rate is None:
            bars.append(None)
            continue
        is_open = has_no_limit(entry)
        share = f" ({rate / base:.2f})" if ours else ""
        text = f"{short(rate)}{' +' if is_open else ''}{share}"
        bars.append(Bar(rate / base, text if rate else "none", is_open))
    title = "goodput, requests/s and GPU (over default's)"
    drawing = bar_panels([row_of(name) for name in entries], [Panel(title, bars, marks)], title)
    return figure(drawing, f"{trace}, {hardware}", source_of(group.results, hardware))


def pair_details(group: CellGroup, trace: str, hardware: str) -> str:
    """Folded: curves, tails, and the table of everything."""
    entries = {
        name: entry
        for name, entry in group.of_pair(trace, hardware).items()
        if entry["common"] is not None
    }
    if not entries:
        text = f"{trace}, {hardware}: every prompt is too long for a worker."
        return f"<p>{escape(text)}</p>"
    source = source_of(group.results, hardware)
    figures = [
        _attainment(entries, trace, hardware, source),
        _tails(entries, "ttft_ms", "time to first token", source),
        _tails(entries, "tbt_ms", "time between tokens", source),
        _costs(entries, source),
    ]
    parts = [_about(entries), side_by_side([one for one in figures if one]), _table(entries)]
    first = next(iter(entries.values()))["common"]
    told = f"{trace}, {hardware}: curves, tails and table"
    return folded(f"{told} (at {short(first['offered_rps'])} requests/s)", parts)


def _rate(entry: Entry | None) -> float | None:
    """Per GPU, the highest that was found, whether or not more would do; None without."""
    if entry is None or entry["common"] is None:
        return None
    return float(entry["goodput"]["rps_per_gpu"]) if entry["goodput"] is not None else 0.0


def _about(entries: Mapping[str, Entry]) -> str:
    first = next(iter(entries.values()))
    told = [
        f"{first['requests']} requests of the trace, {first['too_long']} too long for a worker",
        f"goals {first['slo']}",
    ]
    if first.get("slo_source"):
        told[-1] += f" ({first['slo_source']})"
    if first.get("hopeless_share"):
        told.append(f"an idle cluster misses them for {100 * first['hopeless_share']:.1f} %")
    if "prompt_tokens_mean" in first and "output_tokens_mean" in first:
        prompt, output = first["prompt_tokens_mean"], first["output_tokens_mean"]
        told.append(f"prompts of {prompt} tokens, answers of {output} in the mean")
    offered = short(first["common"]["offered_rps"])
    told.append(f"all but the curves at {offered} requests/s, 1.1 times what fcfs serves")
    return f'<p class="facts">{escape("; ".join(told))}.</p>'


def _attainment(entries: Mapping[str, Entry], trace: str, hardware: str, source: str) -> str:
    """Over the rates that the search for the goodput tried."""
    lines = []
    for name, entry in entries.items():
        goodput = entry["goodput"]
        if goodput is None or not goodput["rate_scale"]:
            continue
        per_scale = goodput["rps_per_gpu"] / goodput["rate_scale"]
        points = sorted({(scale * per_scale, attained) for scale, attained in goodput["probes"]})
        if points:
            lines.append(Line(row_of(name), points))
    if not lines:
        return ""
    x = Axis("requests/s and GPU", is_log=True)
    y = Axis("requests that met their goals", is_percent=True)
    about = f"attainment over rate, {trace}, {hardware}"
    drawing = line_chart(lines, x, y, about, [Mark(_LEVEL, "90 %")])
    return figure(drawing, "Attainment over the offered rate", source)


def _tails(entries: Mapping[str, Entry], name: str, about: str, source: str) -> str:
    spreads = []
    for policy, entry in entries.items():
        found = entry["common"][name]
        if found["p50"] is not None:
            row = row_of(policy)
            spreads.append(Spread(row, found["p50"], found["p90"], found["p99"], found["max"]))
    if not spreads:
        return ""
    drawing = spread_chart(spreads, "ms", about)
    note = "From the median (bar) over p90 and p99 (dots) to the longest."
    return figure(drawing, f"{about[0].upper()}{about[1:]}", source, note)


def _costs(entries: Mapping[str, Entry], source: str) -> str:
    """JCT, memory, GPUs and preemptions, a panel each."""
    ours = entries.get(OURS)
    own_rate = None if ours is None else rate_per_gpu(ours)

    def gpus(entry: Entry) -> float | None:
        rate = rate_per_gpu(entry)
        return own_rate / rate if own_rate and rate else None

    written = common("kvc_written_share")
    told: Sequence[tuple[str, Callable[[Entry], float | None], str]] = (
        ("JCT, mean, s", common("jct_s", "mean"), ""),
        ("KVC written", written, "%"),
        ("GPUs for one", gpus, ""),
        ("preemptions", common("preemptions"), ""),
    )
    panels = [
        Panel(title, [_bar(figure_of(entry), unit) for entry in entries.values()])
        for title, figure_of, unit in told
    ]
    drawing = bar_panels([row_of(name) for name in entries], panels, "what it costs")
    note = (
        "GPUs for one: how many serve what one GPU serves under the default; none where a policy "
        "serves no rate or no rate that was tried failed."
    )
    return figure(drawing, "What it costs", source, note)


def _bar(value: float | None, unit: str) -> Bar | None:
    if value is None:
        return None
    return Bar(value, f"{100 * value:.0f} %" if unit == "%" else short(value))


def _table(entries: Mapping[str, Entry]) -> str:
    head = [
        "policy", "cluster", "goodput/GPU", "attained", "req/s", "JCT mean", "JCT p99",
        "TTFT p50", "TTFT p99", "TBT p50", "TBT p99", "TPOT p99", "preemptions", "swaps",
        "KVC held", "KVC written", "prompts cached",
    ]  # fmt: skip
    rows = []
    for name, entry in entries.items():
        one = entry["common"]
        rate = _rate(entry)
        rows.append(
            [
                f"<code>{escape(name)}</code>",
                escape(one["cluster"]),
                "none" if not rate else f"{short(rate)}{' +' if has_no_limit(entry) else ''}",
                _share(one["slo_attainment"]),
                short(one["throughput_rps"]),
                _time(one["jct_s"]["mean"], "s"),
                _time(one["jct_s"]["p99"], "s"),
                *(_time(one["ttft_ms"][part], "ms") for part in ("p50", "p99")),
                *(_time(one["tbt_ms"][part], "ms") for part in ("p50", "p99")),
                _time(one["tpot_ms"]["p99"], "ms"),
                short(one["preemptions"]),
                short(one["swaps"]),
                *(_share(one[f"kvc_{kind}_share"]) for kind in ("allocated", "written")),
                _share(one["cached_prompt_share"]),
            ]
        )
    return table(head, rows)


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _time(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{short(value)} {unit}"


def source_of(results: Results, hardware: str) -> str:
    """With the hardware that was simulated."""
    return f"{hardware}, simulated; {results.source}"
