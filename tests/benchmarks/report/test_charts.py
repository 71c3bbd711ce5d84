"""Drawings: everything is inside, and the same every time."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
from benchmarks.report.scales import scale_of, short

values = st.lists(st.floats(min_value=0, max_value=1e9), min_size=1, max_size=12)


@given(values, st.booleans())
def test_every_value_stands_between_the_ends_and_in_order(found: list[float], is_log: bool) -> None:
    scale = scale_of(found, 10.0, 200.0, is_log=is_log)
    places = [scale.at(value) for value in sorted(found)]
    assert all(10.0 - 1e-6 <= place <= 200.0 + 1e-6 for place in places)
    assert all(one <= other + 1e-9 for one, other in pairwise(places))


@given(values, st.booleans())
def test_ticks_are_few_ascending_and_on_the_axis(found: list[float], is_log: bool) -> None:
    scale = scale_of(found, 0.0, 100.0, is_log=is_log)
    ticks = scale.ticks()
    assert len(ticks) <= 7
    assert all(one < other for one, other in pairwise(ticks))
    least = scale.least * (1 - 1e-6)
    assert all(least <= tick <= scale.most * (1 + 1e-6) for tick in ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00004, "4.0e-05"),
        (0.0412, "0.0412"),
        (12.34, "12.3"),
        (999.9, "1,000"),
        (1234.5, "1,234"),
        (2.5e6, "2.5M"),
    ],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert short(value) == text


def test_a_bar_is_as_long_as_its_share_of_the_longest() -> None:
    panel = Panel("figure", [Bar(2.0, "two"), Bar(1.0, "one +", is_open=True), None], [])
    drawing = bar_panels([Row("a", 0), Row("b", 1), Row("c", 9)], [panel], "about")
    long, half = (float(width) for width in re.findall(r'width="([\d.]+)"', drawing))
    assert half == pytest.approx(long / 2, abs=0.1)
    assert 'class="b s1 o"' in drawing
    assert ">-</text>" in drawing


def test_lines_beyond_eight_colours_have_dashes_and_levels_have_names() -> None:
    lines = [Line(Row(f"line <{n}>", n), [(1.0, n + 1.0), (10.0, 2.0)]) for n in range(9)]
    axes = Axis("x", is_log=True), Axis("y")
    drawing = line_chart(lines, *axes, "about", [Mark(3.0, "a goal")])
    assert 'class="n s0 d1"' in drawing
    assert "a goal" in drawing
    assert "line &lt;8&gt;" in drawing
    assert drawing == line_chart(lines, *axes, "about", [Mark(3.0, "a goal")])


def test_a_share_is_drawn_from_below_its_lowest_on() -> None:
    line = Line(Row("a", 0), [(1.0, 0.93), (2.0, 0.41)])
    drawing = line_chart([line], Axis("x"), Axis("y", is_percent=True), "about")
    assert ">40 %</text>" in drawing
    assert ">100 %</text>" in drawing
    assert ">20 %</text>" not in drawing


def test_a_spread_goes_from_the_median_to_the_most() -> None:
    one = Spread(Row("fcfs", 0), 10.0, 50.0, 90.0, 100.0)
    drawing = spread_chart([one], "ms", "about")
    start, end = (float(x) for x in re.findall(r"M([\d.]+) [\d.]+H([\d.]+)", drawing)[-1])
    dots = [float(x) for x in re.findall(r'cx="([\d.]+)"', drawing)]
    assert start < dots[0] < dots[1] < end
