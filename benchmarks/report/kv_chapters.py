"""Chapters of KV on its way and at its place: pushes, their overlap with prefill, stores."""

import statistics
from collections.abc import Sequence

from benchmarks.report.charts import Axis, Bar, Line, Mark, Panel, Row, bar_panels, line_chart
from benchmarks.report.fields import Field, Results
from benchmarks.report.markup import Chapter, chapter, ending, facts, figure, side_by_side
from benchmarks.report.prose import Section

_OVERLAPS = (("auto", "whole"), ("auto", "chunk"))


def kv_push(results: Results, sections: Sequence[Section]) -> Chapter:
    """Pushes through shared memory over one memcpy of as many bytes. Raises: ResultsUnreadable."""
    points: dict[str, list[tuple[float, float]]] = {}
    speeds: dict[str, list[tuple[float, float]]] = {}
    for row in results.content.at("rows").elements():
        size = row.at("block_bytes").number()
        copied = size * row.at("num_blocks").number() / 2**20
        place = "scattered" if row.at("is_scattered").flag() else "contiguous"
        name = f"{size / 1024:g} KiB blocks, {place}"
        found = row.at("mb_per_s")
        push, memcpy = found.at("push").numbers(), found.at("memcpy").positives()
        shares = [one / other for one, other in zip(push, memcpy, strict=False)]
        points.setdefault(name, []).append((copied, statistics.median(shares)))
        speeds.setdefault(name, []).append((copied, statistics.median(push)))
    figures = []
    told: Sequence[tuple[str, dict[str, list[tuple[float, float]]], list[Mark]]] = (
        ("bytes/s of a push over those of one memcpy", points, [Mark(0.95, "target 0.95")]),
        ("MB/s of a push", speeds, []),
    )
    for title, by_name, levels in told:
        if by_name:
            lines = [
                Line(Row(name, number), sorted(found))
                for number, (name, found) in enumerate(by_name.items())
            ]
            axes = Axis("MiB a push", is_log=True), Axis("share" if levels else "MB/s", is_log=True)
            drawing = line_chart(lines, *axes, title, levels)
            figures.append(figure(drawing, title, results.source, "Medians of the rounds."))
    parts = [facts(results), side_by_side(figures), *ending(results, sections)]
    return chapter("KV through shared memory", results, parts)


def kv_push_network(results: Results, sections: Sequence[Section]) -> Chapter:
    """Pushes over the network over a plain socket in the same round. Raises: ResultsUnreadable."""
    found: dict[str, dict[str, Bar]] = {}
    shapes: dict[str, None] = {}
    for row in results.content.at("rows").elements():
        size, number = row.at("block_bytes").number(), row.at("num_blocks").number()
        place = "scattered" if row.at("is_scattered").flag() else "together"
        shape = f"{number:g} x {size / 1024:g} KiB {place}"
        shapes[shape] = None
        push, plain = row.at("push_mb_per_s").numbers(), row.at("socket_mb_per_s").positives()
        share = statistics.median(one / other for one, other in zip(push, plain, strict=False))
        bar = Bar(share, f"{share:.2f}")
        found.setdefault(row.at("transport").text().replace("_", " "), {})[shape] = bar
    panels = [
        Panel(name, [by_shape.get(shape) for shape in shapes], [Mark(0.9, "target for TCP")])
        for name, by_shape in found.items()
    ]
    parts = [facts(results)]
    if panels:
        title = "bytes/s of a push over those of a plain socket"
        drawing = bar_panels([Row(shape, 0) for shape in shapes], panels, title)
        note = "Medians of the rounds; the line is the target for TCP, 0.9."
        parts.append(figure(drawing, title, results.source, note))
    return chapter("KV over the network", results, [*parts, *ending(results, sections)])


def kv_overlap(results: Results, sections: Sequence[Section]) -> Chapter:
    """When the last block was there, over other ways to push. Raises: ResultsUnreadable."""
    found: dict[str, dict[str, list[Field]]] = {}
    for row in results.content.at("rows").elements():
        passes, tokens = row.at("max_num_batched_tokens").number(), row.at("num_tokens").number()
        path = row.at("transport").text().replace("_", " ")
        name = f"{path}, passes of {passes:g}, {tokens:g} tokens"
        found[name] = {way: turns.elements() for way, turns in row.at("turns").items()}
    title = "time to the last block of a prompt"
    return _overlap_chapter(results, sections, found, "arrived_s", title)


def kv_overlap_live(results: Results, sections: Sequence[Section]) -> Chapter:
    """The second token at the caller, over other ways to push. Raises: ResultsUnreadable."""
    found: dict[str, dict[str, list[Field]]] = {}
    for path, ways in results.content.at("rows").items():
        for way, by_length in ways.items():
            for length, rounds in by_length.items():
                name = f"{path.replace('_', ' ')}, {length} tokens"
                found.setdefault(name, {})[way] = rounds.elements()
    return _overlap_chapter(results, sections, found, "second_token_s", "time to the second token")


def _overlap_chapter(
    results: Results,
    sections: Sequence[Section],
    found: dict[str, dict[str, list[Field]]],
    field: str,
    what: str,
) -> Chapter:
    """`found`: by cell and way of pushing, the rounds."""
    panels = []
    for way, other in _OVERLAPS:
        bars = []
        for rounds in found.values():
            pairs = zip(rounds.get(way, ()), rounds.get(other, ()), strict=False)
            shares = [_share(one, two, field) for one, two in pairs]
            bars.append(_bar(shares) if shares else None)
        panels.append(Panel(f"{way} over {other}", bars, [Mark(1.0, "as long")]))
    parts = [facts(results)]
    if found:
        drawing = bar_panels([Row(name, 0) for name in found], panels, what)
        parts.append(figure(drawing, what, results.source, "Medians of the rounds' ratios."))
    title = f"KV that leaves while its prompt is computed, {what}"
    return chapter(title, results, [*parts, *ending(results, sections)])


def gpu(results: Results, sections: Sequence[Section]) -> Chapter:
    """Parts of the GPU benchmark; drawn are orders and blocks of the KV store.

    Raises: ResultsUnreadable.
    """
    parts = [facts(results)]
    layout = results.content.at("parts").get("layout")
    rows = [] if layout is None else _rows_of(layout)
    by_load: dict[str, list[Field]] = {}
    for row in rows:
        by_load.setdefault(row.at("load").text(), []).append(row)
    for load, cells in by_load.items():
        names = [Row(_store(cell), 0) for cell in cells]
        panels = [
            Panel(title, [_bar([_ratio(cell, kind)]) for cell in cells], [Mark(1.0, "as it is")])
            for kind, title in (("attention_ratio", "attention"), ("gather_ratio", "gathering"))
        ]
        what = f"KV stores, {load}: time over that of the store as it is"
        note = "Medians of ratios within turns."
        parts.append(figure(bar_panels(names, panels, what), what, results.source, note))
    title = "On a GPU, or what runs without one"
    return chapter(title, results, [*parts, *ending(results, sections)])


def _rows_of(part: Field) -> list[Field]:
    rows = part.get("rows")
    return [] if rows is None else rows.elements()


def _store(cell: Field) -> str:
    return f"{cell.at('order').text()}; {cell.at('page_size').number():g} tokens a block"


def _ratio(cell: Field, kind: str) -> float:
    return cell.at(kind).at("median").number()


def _share(one: Field, other: Field, field: str) -> float:
    return one.at(field).number() / other.at(field).positives()[0]


def _bar(values: Sequence[float]) -> Bar:
    middle = statistics.median(values)
    return Bar(middle, f"{middle:.2f}")
