"""Figures as inline SVG: bars in panels, lines over an axis, spreads of a distribution.

Colours are classes (s0, s1, ..) that the page's style gives for light and dark screens, so a figure
is there once. Nothing here knows what is measured. The same input gives the same text.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.report.scales import Scale, scale_of, short

# Of all figures, in units of the drawing.
_WIDTH = 640
_ROW, _TOP, _FOOT = 18, 22, 6
_LABEL = 132
# Room for the number behind a bar.
_NUMBER = 84
_CHARACTER = 6.2
_HEIGHT, _HEAD, _LEFT, _RIGHT, _BOTTOM = 270, 22, 56, 12, 40


@dataclass(frozen=True, slots=True)
class Bar:
    """`is_open`: it may be longer than was found."""

    value: float
    text: str
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A value to compare with, as a thin line."""

    value: float
    name: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A bar for each row, None where nothing was measured. Values are not below 0."""

    title: str
    bars: Sequence[Bar | None]
    marks: Sequence[Mark] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """What a row or a line is called, and the number of its colour."""

    name: str
    style: int


@dataclass(frozen=True, slots=True)
class Line:
    """Points in ascending order."""

    row: Row
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """What it shows, with its unit."""

    title: str
    is_log: bool = False
    # Of shares, up to 100 %.
    is_percent: bool = False


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one row: what a half, nine tenths and all but a hundredth stay below, and the most."""

    row: Row
    p50: float
    p90: float
    p99: float
    most: float


def bar_panels(rows: Sequence[Row], panels: Sequence[Panel], about: str) -> str:
    """The rows' names once, then a panel of bars beside the other."""
    height = _TOP + _ROW * len(rows) + _FOOT
    longest = max((len(row.name) for row in rows), default=0)
    label = min(_WIDTH / 2, max(_LABEL, 10 + _CHARACTER * longest))
    parts = [_open(height, about)]
    for number, row in enumerate(rows):
        name = _cut(row.name, label)
        parts.append(_text(label - 6, _row_y(number) + 4, name, "end", "l"))
    width = (_WIDTH - label) / len(panels)
    for number, panel in enumerate(panels):
        begin = label + number * width
        parts += _panel(rows, panel, begin, begin + width - 8)
    return "".join([*parts, "</svg>"])


def line_chart(
    lines: Sequence[Line], x: Axis, y: Axis, about: str, levels: Sequence[Mark] = ()
) -> str:
    """Lines with a dot at every point, and their names below."""
    points = [point for line in lines for point in line.points]
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    across = scale_of([point[0] for point in points], _LEFT, right, is_log=x.is_log)
    values = [point[1] for point in points] + [level.value for level in levels]
    if y.is_percent:
        # Whole tenths, from below the lowest on.
        up = Scale(min(0.8, math.floor(10 * min(values)) / 10), 1.0, bottom, _HEAD)
    else:
        up = scale_of(values, bottom, _HEAD, is_log=y.is_log)
    parts = [_open(_HEIGHT, about), *_frame(across, up, x, y)]
    for level in levels:
        at = up.at(level.value)
        parts.append(f'<path class="m" d="M{_LEFT} {at:.1f}H{right}"/>')
        parts.append(_text(right, at - 3, level.name, "end", "f"))
    for line in lines:
        parts += _line(line, across, up)
    return "".join([*parts, "</svg>", legend([line.row for line in lines])])


def spread_chart(
    spreads: Sequence[Spread], title: str, about: str, marks: Sequence[Mark] = ()
) -> str:
    """A row each on a logarithmic axis: from the median to the most, with dots at p90 and p99."""
    height = 8 + _ROW * len(spreads) + 36
    values = [value for one in spreads for value in (one.p50, one.p90, one.p99, one.most)]
    values += [mark.value for mark in marks]
    across = scale_of(values, _LABEL + 6, _WIDTH - _RIGHT, is_log=True)
    foot = 8 + _ROW * len(spreads)
    parts = [_open(height, about)]
    for value in across.ticks():
        at = across.at(value)
        parts.append(f'<path class="g" d="M{at:.1f} 4V{foot}"/>')
        parts.append(_text(at, foot + 14, short(value), "middle", "f"))
    parts.append(_text(_WIDTH - _RIGHT, foot + 30, title, "end", "f"))
    for mark in marks:
        at = across.at(mark.value)
        parts.append(f'<path class="m" d="M{at:.1f} 2V{foot}"/>')
        parts.append(_text(at, foot + 30, mark.name, "middle", "f"))
    for number, one in enumerate(spreads):
        parts += _spread(one, 8 + _ROW * number + _ROW / 2, across)
    return "".join([*parts, "</svg>"])


def legend(rows: Sequence[Row]) -> str:
    """Names with their colours, which wrap where the screen is narrow."""
    parts = [
        f'<span><svg class="k" viewBox="0 0 26 8"><path class="n {_style(row)}" d="M0 4H26"/></svg>'
        f"{escape(row.name)}</span>"
        for row in rows
    ]
    return f'<div class="legend">{"".join(parts)}</div>'


def _panel(rows: Sequence[Row], panel: Panel, begin: float, end: float) -> Iterator[str]:
    yield _text(begin, 12, _cut(panel.title, end - begin), "start", "t")
    values = [bar.value for bar in panel.bars if bar is not None]
    values += [mark.value for mark in panel.marks]
    across = scale_of(values, begin, max(begin + 10, end - _NUMBER))
    foot = _TOP + _ROW * len(rows)
    for mark in panel.marks:
        at = across.at(mark.value)
        name = f"<title>{escape(mark.name)}: {short(mark.value)}</title>"
        yield f'<path class="m" d="M{at:.1f} {_TOP - 2}V{foot}">{name}</path>'
    for number, (row, bar) in enumerate(zip(rows, panel.bars, strict=True)):
        y = _row_y(number)
        if bar is None:
            yield _text(begin, y + 4, "-", "start", "f")
            continue
        width = max(1.0, across.at(bar.value) - begin)
        kind = f"b {_style(row)}{' o' if bar.is_open else ''}"
        size = f'x="{begin:.1f}" y="{y - 6:.1f}" width="{width:.1f}" height="12"'
        hint = f"<title>{escape(row.name)}: {escape(bar.text)}</title>"
        yield f'<rect class="{kind}" {size}>{hint}</rect>'
        yield _text(begin + width + 4, y + 4, bar.text, "start", "l")


def _frame(across: Scale, up: Scale, x: Axis, y: Axis) -> Iterator[str]:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    for value in up.ticks():
        at = up.at(value)
        text = f"{100 * value:.0f} %" if y.is_percent else short(value)
        yield f'<path class="g" d="M{_LEFT} {at:.1f}H{right}"/>'
        yield _text(_LEFT - 5, at + 4, text, "end", "f")
    for value in across.ticks(8):
        at = across.at(value)
        yield f'<path class="g" d="M{at:.1f} {_HEAD}V{bottom}"/>'
        yield _text(at, bottom + 14, short(value), "middle", "f")
    yield f'<path class="a" d="M{_LEFT} {_HEAD}V{bottom}H{right}"/>'
    yield _text(right, _HEIGHT - 8, x.title, "end", "t")
    yield _text(_LEFT, 9, y.title, "start", "t")


def _line(line: Line, across: Scale, up: Scale) -> Iterator[str]:
    style = _style(line.row)
    places = [(across.at(x), up.at(y)) for x, y in line.points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    yield f'<path class="n {style}" d="M{path}"/>'
    for (x, y), (value, other) in zip(places, line.points, strict=True):
        hint = f"<title>{escape(line.row.name)}: {short(other)} at {short(value)}</title>"
        yield f'<circle class="c {style}" cx="{x:.1f}" cy="{y:.1f}" r="3">{hint}</circle>'


def _spread(one: Spread, y: float, across: Scale) -> Iterator[str]:
    style = _style(one.row)
    yield _text(_LABEL - 6, y + 4, one.row.name, "end", "l")
    begin, nine, last, end = map(across.at, (one.p50, one.p90, one.p99, one.most))
    yield f'<path class="n {style}" d="M{begin:.1f} {y:.1f}H{end:.1f}"/>'
    told = f"p50 {short(one.p50)}, p90 {short(one.p90)}, p99 {short(one.p99)}"
    hint = f"<title>{escape(one.row.name)}: {told}, most {short(one.most)}</title>"
    yield f'<path class="n {style}" d="M{begin:.1f} {y - 5:.1f}v10"/>'
    yield f'<circle class="c {style}" cx="{nine:.1f}" cy="{y:.1f}" r="3">{hint}</circle>'
    yield f'<circle class="c {style}" cx="{last:.1f}" cy="{y:.1f}" r="5">{hint}</circle>'


def _open(height: float, about: str) -> str:
    box = f'viewBox="0 0 {_WIDTH} {height:g}"'
    return f'<svg class="chart" {box} role="img" aria-label="{escape(about)}">'


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    where = f'x="{x:.1f}" y="{y:.1f}"'
    end = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text class="{kind}" {where}{end}>{escape(text)}</text>'


def _style(row: Row) -> str:
    """Beyond eight the colours come again, with dashes."""
    return f"s{row.style % 8}" + (f" d{row.style // 8 % 4}" if row.style >= 8 else "")


def _row_y(number: int) -> float:
    return _TOP + _ROW * number + _ROW / 2


def _cut(text: str, width: float) -> str:
    most = int(width / _CHARACTER)
    return text if len(text) <= most else f"{text[: most - 1]}…"
