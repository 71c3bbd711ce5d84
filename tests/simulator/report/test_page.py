"""The page holds everything and fetches nothing."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest

from simulator.metrics.summary import RunResult, summary
from simulator.metrics.testing import InventedRun
from simulator.report.columns import COLUMNS
from simulator.report.page import page_text, write_page
from simulator.report.palette import DARK, LIGHT
from simulator.report.plots import Picture, pictures

Drawn = tuple[list[Picture], list[Picture]]
# Elements that have no end.
_VOID = {"meta", "img", "source", "br"}


class Reader(HTMLParser):
    """Checks that elements nest, and notes what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.loaded: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        named = dict(attrs)
        self.loaded += [named[key] or "" for key in ("src", "srcset", "href") if key in named]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def results() -> list[RunResult]:
    """A policy with a name that is no name for HTML, at two rates."""
    return [
        InventedRun(policy, 25, rate_scale, trace="<day> & night").result()
        for rate_scale in (0.5, 1.0)
        for policy in ("default", "<script>alert(1)</script>")
    ]


@pytest.fixture(scope="module")
def drawn(results: list[RunResult]) -> Drawn:
    """All plots, light and dark."""
    return pictures(results, LIGHT), pictures(results, DARK)


@pytest.fixture(scope="module")
def page(results: list[RunResult], drawn: Drawn) -> str:
    """The text of the file."""
    return page_text([summary(result) for result in results], *drawn)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    return reader


def test_the_page_is_whole_and_its_elements_nest(page: str) -> None:
    assert page.startswith("<!doctype html>")
    reader = read(page)
    assert reader.open == []
    # Two rates, and the settings.
    assert reader.seen.count("table") == 3
    assert reader.seen.count("figure") == 6


def test_the_page_loads_nothing_and_runs_nothing(page: str) -> None:
    # A colon cannot come from a picture.
    assert "://" not in page
    assert "url(" not in page
    assert "@import" not in page
    reader = read(page)
    assert not {"script", "link", "iframe", "object"} & set(reader.seen)
    assert reader.loaded
    prefix = "data:image/png;base64,"
    for loaded in reader.loaded:
        assert base64.b64decode(loaded.removeprefix(prefix), validate=True)[1:4] == b"PNG"


def test_every_picture_is_there_for_light_and_for_dark(page: str) -> None:
    reader = read(page)
    assert len(reader.loaded) == 2 * reader.seen.count("picture")
    assert page.count("prefers-color-scheme: dark") == reader.seen.count("picture") + 1


def test_names_are_text_and_not_markup(page: str) -> None:
    text = read(page).text
    assert "<script>alert(1)</script>" in text
    assert "<day> & night" in text


def test_every_figure_of_the_table_is_on_the_page(page: str, results: list[RunResult]) -> None:
    text = read(page).text
    for result in results:
        for column in COLUMNS:
            assert column.cell(summary(result)) in text
    assert "max_tokens" in text


def test_the_same_pictures_give_the_same_page(
    results: list[RunResult], drawn: Drawn, page: str
) -> None:
    assert page_text([summary(result) for result in results], *drawn) == page


def test_a_page_of_one_small_run_becomes_a_file(tmp_path: Path) -> None:
    write_page(tmp_path / "report.html", [InventedRun(num_requests=3).result()])
    assert read((tmp_path / "report.html").read_text("utf-8")).open == []
