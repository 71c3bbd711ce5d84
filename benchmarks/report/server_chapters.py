"""Chapters of what was measured on real processes: end to end, the router, prompts."""

import statistics
from collections.abc import Sequence
from html import escape

from benchmarks.report.charts import Axis, Bar, Line, Panel, Row, bar_panels, line_chart
from benchmarks.report.fields import Field, Results
from benchmarks.report.markup import Chapter, chapter, ending, facts, figure, side_by_side
from benchmarks.report.prose import Section, table
from benchmarks.report.scales import short

_SERVED = (
    ("tokens_per_s", "tokens/s, all clients", False),
    ("ttft_p99", "TTFT p99, ms", True),
    ("itl_p50", "ITL p50, ms", True),
    ("itl_p99", "ITL p99, ms", True),
)
# By what a load is about: its figures that are compared.
_OF_STREAMS = (("tokens_per_cpu_s", "tokens a CPU-second"), ("gap_p99_ms", "gap p99, ms"))
_OF_REQUESTS = (("requests_s", "requests/s"), ("cpu_us_per_request", "CPU us a request"))
_OF_PROMPTS = (("prompt_mb_s", "prompt MB/s"), ("cpu_s_per_prompt_mb", "CPU s a MB"))


def end_to_end(results: Results, sections: Sequence[Section]) -> Chapter:
    """Servers beside each other by how many clients ask at once. Raises: ResultsUnreadable."""
    measured = [one for each in results.content.at("rounds").elements() for one in each.elements()]
    servers = list(dict.fromkeys(one.at("server").text() for one in measured))
    figures = []
    for name, title, is_log in _SERVED:
        lines = []
        for number, server in enumerate(servers):
            points = _by_clients(measured, server, name)
            lines.append(Line(Row(server, number), points))
        if lines:
            x, y = Axis("clients", is_log=True), Axis(title, is_log=is_log)
            drawing = line_chart(lines, x, y, title)
            figures.append(figure(drawing, title, results.source, "Medians of the rounds."))
    floor = results.content.at("decode_floor_ms").number()
    model = results.content.at("model").text()
    more = f"<br>Model {escape(model)}; the floor of a decode step is {floor:.2f} ms."
    failures = [one.text() for one in results.content.at("failures").elements()]
    if failures:
        more += f"<br>Failed: {escape('; '.join(failures))}."
    parts = [facts(results, more), side_by_side(figures), *ending(results, sections)]
    return chapter(f"End to end beside its peers, {model}", results, parts)


def router(results: Results, sections: Sequence[Section]) -> Chapter:
    """Routers beside each other, load by load, and what processes hold. Raises:
    ResultsUnreadable."""
    servers = results.content.at("results").items()
    loads = list(dict.fromkeys(load for _, found in servers for load, _ in found.items()))
    figures = []
    for load in loads:
        names = _figures_of(load)
        under = [(number, name, found.get(load)) for number, (name, found) in enumerate(servers)]
        there = [(Row(name, number), one) for number, name, one in under if one is not None]
        panels = [Panel(title, [_summary(one, name) for _, one in there]) for name, title in names]
        drawing = bar_panels([row for row, _ in there], panels, load)
        figures.append(figure(drawing, load, results.source, "Medians of the blocks."))
    parts = [facts(results), side_by_side(figures), _added(results), _footprint(results)]
    return chapter("The router", results, [*parts, *ending(results, sections)])


def prompt_flow(results: Results, sections: Sequence[Section]) -> Chapter:
    """Bytes of prompts through the router, beside its limits. Raises: ResultsUnreadable."""
    rounds = results.content.at("rounds").items()
    rows = [Row(name, number) for number, (name, _) in enumerate(rounds)]
    panels = [
        Panel(title, [_bar(_all(each, name)) for _, each in rounds]) for name, title in _OF_PROMPTS
    ]
    title = "prompts through the router, and its limits"
    drawing = bar_panels(rows, panels, title)
    shares = [
        [escape(name), short(one.number())]
        for name, one in results.content.at("share_of_limit").items()
    ]
    drawn = figure(drawing, title, results.source, "Medians of the rounds.")
    parts = [facts(results), drawn, table(["MB/s over its limit", "share"], shares)]
    return chapter("What prompts cost", results, [*parts, *ending(results, sections)])


def _by_clients(measured: Sequence[Field], server: str, name: str) -> list[tuple[float, float]]:
    values: dict[float, list[float]] = {}
    for one in measured:
        if one.at("server").text() == server:
            values.setdefault(one.at("num_clients").number(), []).append(one.at(name).number())
    return [(clients, statistics.median(same)) for clients, same in sorted(values.items())]


def _figures_of(load: str) -> Sequence[tuple[str, str]]:
    if "streams" in load:
        return _OF_STREAMS
    return _OF_PROMPTS if load.startswith("prompt bytes") else _OF_REQUESTS


def _summary(load: Field, name: str) -> Bar | None:
    found = load.at("summary").get(name)
    return None if found is None else _bar([found.at("median").number()])


def _all(rounds: Field, name: str) -> list[float]:
    found = [one.at(name).number() for one in rounds.elements()]
    if not found:
        raise rounds.wrong("rounds")
    return found


def _bar(values: Sequence[float]) -> Bar:
    middle = statistics.median(values)
    return Bar(middle, short(middle))


def _added(results: Results) -> str:
    found = results.content.get("added_latency_ms")
    if found is None:
        return ""
    rows = [
        [escape(name), *(short(statistics.median(one.at(q).numbers())) for q in ("p50", "p99"))]
        for name, one in found.items()
    ]
    return table(["added latency at half load", "p50, ms", "p99, ms"], rows) if rows else ""


def _footprint(results: Results) -> str:
    """Memory and start-up."""
    found = results.content.get("footprint")
    if found is None:
        return ""
    rows = [
        [escape(name.replace("_", " ")), short(one.number())]
        for name, one in found.items()
        if one.value is not None
    ]
    return f"<h3>Memory and start-up</h3>{table(['figure', 'value'], rows)}" if rows else ""
