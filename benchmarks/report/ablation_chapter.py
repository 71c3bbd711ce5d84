"""A chapter of `benchmarks.scheduling.ablations`: what each mechanism is worth."""

from collections.abc import Sequence
from html import escape

from benchmarks.report.charts import Bar, Mark, Panel, Row, bar_panels
from benchmarks.report.fields import Results
from benchmarks.report.markup import Chapter, facts, figure, folded, reasons
from benchmarks.report.prose import Section, as_html
from benchmarks.report.scheduling_cells import CellGroup, cell_groups
from benchmarks.scheduling.ablation_report import beside_published, gains, rates
from benchmarks.scheduling.ratios import Figure, common, policies_of, rate_per_gpu, ratios

_SHOWN: tuple[tuple[str, Figure], ...] = (
    ("goodput", rate_per_gpu),
    ("attainment", common("slo_attainment")),
    ("JCT", common("jct_s", "mean")),
)


def ablation_chapter(results: Results, sections: Sequence[Section]) -> Chapter:
    """Of one file. Raises: ResultsUnreadable."""
    parts = [facts(results)]
    for group in cell_groups(results, is_ablation=True):
        parts.append(f"<p>Measured with {escape(group.title)}.</p>")
        names = policies_of(group.entries)
        bases = [name for name in names if any(n.startswith(f"{name} - ") for n in names)]
        for base in bases:
            parts.append(f"<h3>{escape(base)}</h3>")
            parts.append(_gains(group, base))
            parts.append(as_html(gains(group.entries, base)))
            parts.append(as_html(beside_published(group.entries, base)))
            told = [as_html(rates(group.entries, base))]
            parts.append(folded(f"{base}: goodput pair by pair", told))
    parts.append(reasons(sections))
    title = f"What each mechanism is worth: {results.name}"
    return Chapter(title, results.anchor, (results.name,), tuple(parts))


def _gains(group: CellGroup, base: str) -> str:
    """With the mechanism over without it."""
    variants = [name for name in policies_of(group.entries) if name.startswith(f"{base} - ")]
    rows = [Row(name.removeprefix(f"{base} - "), 0) for name in variants]
    panels = []
    for title, figure_of in _SHOWN:
        bars: list[Bar | None] = []
        for name in variants:
            mean = ratios(group.entries, base, name, figure_of).geometric_mean
            bars.append(None if mean is None else Bar(mean, f"{mean:.2f}"))
        panels.append(Panel(title, bars, [Mark(1.0, "no difference")]))
    drawing = bar_panels(rows, panels, f"ablations of {base}")
    hardware = ", ".join(dict.fromkeys(pair[1] for pair in group.pairs))
    note = (
        f"With it over without it, geometric means over the pairs of {hardware}; of JCT less is "
        "better."
    )
    return figure(drawing, f"{base}: each mechanism's own gain", group.results.source, note)
