"""Chapters of what decisions cost, and of the simulator: its speed, and how true it is."""

import re
import statistics
from collections.abc import Sequence
from html import escape

from benchmarks.report.charts import Axis, Bar, Line, Mark, Panel, Row, bar_panels, line_chart
from benchmarks.report.fields import Field, Results
from benchmarks.report.markup import Chapter, chapter, ending, facts, figure, side_by_side
from benchmarks.report.prose import Section, table
from benchmarks.report.scales import short
from benchmarks.report.scheduling_pairs import row_of

_WAITING = re.compile(r"(.+), (\d+) wait")


def decision_cost(results: Results, sections: Sequence[Section]) -> Chapter:
    """Over the length of the queue, a curve for each policy. Raises: ResultsUnreadable."""
    points: dict[str, dict[str, list[tuple[float, float]]]] = {}
    alone = []
    for key, one in results.content.at("microseconds").items():
        named = _WAITING.fullmatch(key)
        if named is None:
            alone.append([escape(key), f"{statistics.median(one.numbers()):.1f}"])
            continue
        for what, values in one.items():
            at = float(named[2]), statistics.median(values.numbers())
            points.setdefault(what, {}).setdefault(named[1], []).append(at)
    parts = [facts(results)]
    figures = []
    for what, by_policy in points.items():
        lines = [Line(row_of(name), sorted(found)) for name, found in by_policy.items()]
        unit = "MiB" if what == "MiB" else "us"
        axes = Axis("requests that wait", is_log=True), Axis(unit, is_log=True)
        drawing = line_chart(lines, *axes, what)
        title = "memory of the queue" if what == "MiB" else what
        figures.append(figure(drawing, title, results.source, "Medians of the rounds."))
    parts.append(side_by_side(figures))
    if alone:
        parts.append(table(["beside the queue", "us"], alone))
    return chapter("What a decision costs", results, [*parts, *ending(results, sections)])


def simulator_speed(results: Results, sections: Sequence[Section]) -> Chapter:
    """Over the number of workers. Raises: ResultsUnreadable."""
    runs = results.content.at("runs").elements()
    names = ("times_real_time", "us_per_request", "us_per_iteration", "max_rss_mb")
    titles = ("times as fast as real time", "us a request", "us an iteration", "memory, MB")
    styles: dict[str, Row] = {}
    figures = []
    for name, title in zip(names, titles, strict=True):
        points: dict[str, list[tuple[float, float]]] = {}
        for run in runs:
            (workers,) = run.at("num_workers").positives()
            rate = run.at("requests_per_s").number() / workers
            line = f"{run.at('policy').text()}, {short(rate)} req/s and worker"
            styles.setdefault(line, Row(line, len(styles)))
            points.setdefault(line, []).append((workers, run.at(name).number()))
        lines = [Line(styles[line], sorted(found)) for line, found in points.items()]
        if lines:
            x, y = Axis("workers", is_log=True), Axis(title, is_log=True)
            figures.append(figure(line_chart(lines, x, y, title), title, results.source))
    parts = [facts(results), side_by_side(figures), _rows(runs)]
    return chapter("How fast the simulator is", results, [*parts, *ending(results, sections)])


def simulator_replays(results: Results, sections: Sequence[Section]) -> Chapter:
    """Recorded runs beside their simulation. Raises: ResultsUnreadable."""
    found = [
        (run.at("run").text(), run.at("seconds")) for run in results.content.at("runs").elements()
    ]
    title = "The simulator beside recorded runs of vLLM"
    parts = [facts(results), *_errors(results, found, "real"), *ending(results, sections)]
    left_out = results.content.get("left_out")
    if left_out is not None:
        names = ", ".join(one.text() for one in left_out.elements())
        parts.append(f"<p>Left out: {escape(names)}.</p>")
    return chapter(title, results, parts)


def live_run(results: Results, sections: Sequence[Section]) -> Chapter:
    """A run of our own cluster beside its simulation. Raises: ResultsUnreadable."""
    runs = results.content.at("runs").elements()
    found = [(run.at("cluster").text(), run.at("figures")) for run in runs]
    replayed = ", ".join(
        f"{run.at('cluster').text()}: {short(run.at('replay').at('num_events').number())} events, "
        f"{'the same actions' if run.at('replay').at('is_same').flag() else 'OTHER ACTIONS'}"
        for run in runs
    )
    parts = [facts(results), *_errors(results, found, "live")]
    parts.append(f"<p>Replayed by a fresh core: {escape(replayed)}.</p>")
    title = "The simulator beside a run of our own cluster"
    return chapter(title, results, [*parts, *ending(results, sections)])


def _errors(results: Results, runs: Sequence[tuple[str, Field]], truth: str) -> list[str]:
    """How far off each figure is, and both of its values."""
    names = list(dict.fromkeys(name for _, figures in runs for name, _ in figures.items()))
    panels, rows = [], []
    for run, figures in runs:
        bars: list[Bar | None] = []
        for name in names:
            one = figures.get(name)
            if one is None:
                bars.append(None)
                continue
            error = one.at("error").number()
            bars.append(Bar(abs(error), f"{100 * error:+.1f} %"))
            values = [one.at(key).number() for key in (truth, "simulated")]
            cells = [f"{value:.4g}" for value in values]
            rows.append([escape(run), escape(name), *cells, f"{100 * error:+.1f} %"])
        panels.append(Panel(run, bars, [Mark(0.1, "10 %")]))
    if not panels:
        return []
    styled = [Row(name, 0) for name in names]
    drawing = bar_panels(styled, panels, "errors of the simulator")
    return [
        figure(drawing, "How far the simulator is off", results.source, "The line is 10 %."),
        table(["run", "figure", f"{truth}, s", "simulated, s", "error"], rows),
    ]


def _rows(runs: Sequence[Field]) -> str:
    """Everything that runs say of themselves."""
    names = list(dict.fromkeys(name for run in runs for name, _ in run.items()))
    rows = [[_cell(run.get(name)) for name in names] for run in runs]
    return table([escape(name.replace("_", " ")) for name in names], rows)


def _cell(one: Field | None) -> str:
    if one is None:
        return "-"
    if isinstance(one.value, str):
        return escape(one.value)
    return short(one.number())
