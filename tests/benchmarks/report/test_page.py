"""The page of the results that are kept, whatever they hold at the time."""

import copy
import json
import re
from collections.abc import Iterator
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.__main__ import main
from benchmarks.report.fields import Results, ResultsUnreadable, read_results, results_of
from benchmarks.report.page import MAKER_BY_MODULE, page_of

FOLDER = Path(__file__).parents[3] / "benchmarks" / "results"
FILES = read_results(FOLDER)
TEXT = (FOLDER / "README.md").read_text(encoding="utf-8")
GONE, NAN = "gone", float("nan")
MISTAKES: tuple[Any, ...] = (GONE, None, "a text", [], -1, NAN)
VOID = ("meta", "br", "path", "circle", "rect")


@pytest.fixture(scope="module")
def page() -> str:
    return page_of(FILES, TEXT)


class Document(HTMLParser):
    """Whether tags are closed in order, and what the page refers to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.is_open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        # In HTML these end themselves only as elements of SVG, and by a slash.
        is_closed = tag in VOID and (self.get_starttag_text() or "").endswith("/>")
        if tag not in ("meta", "br") and not is_closed:
            self.is_open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.is_open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_every_file_of_results_has_its_place_its_date_and_its_command(page: str) -> None:
    document = Document(page)
    told = "".join(document.words)
    assert [path.name for path in sorted(FOLDER.glob("*.json"))] == [one.name for one in FILES]
    for one in FILES:
        assert one.anchor in document.ids
        assert one.source in told, "each figure says where it is from"
        assert f"{one.name}: {one.command}{one.date}, {one.machine}" in told


def test_the_page_is_well_formed_and_stands_alone(page: str) -> None:
    document = Document(page)
    assert not document.is_open
    assert len(document.ids) == len(set(document.ids))
    links = [value for _, name, value in document.attributes if name == "href"]
    assert {link.removeprefix("#") for link in links} <= set(document.ids)
    names = {name for _, name, _ in document.attributes}
    assert not names & {"src", "srcset", "style", "xlink:href", "onclick", "action"}
    tags = {tag for tag, _, _ in document.attributes}
    assert not tags & {"script", "link", "img", "iframe", "object", "image", "use"}
    assert not re.search(r"https?:|url\(|@import|<script", page)


def test_no_figure_is_nan_or_missing_and_every_drawing_has_finite_places(page: str) -> None:
    document = Document(page)
    for word in (*document.words, *(value for _, _, value in document.attributes)):
        assert not re.search(r"\b(nan|inf)\b", word), word
        assert word.strip() not in ("None", "null", "[]", "{}")
    for tag, name, value in document.attributes:
        if name in ("x", "y", "cx", "cy", "width", "height", "r"):
            assert re.fullmatch(r"-?\d+(\.\d+)?", value), (tag, name, value)
            assert -1 <= float(value) <= 2000


def test_the_same_files_give_the_same_bytes(page: str) -> None:
    assert page_of(read_results(FOLDER), TEXT) == page


def test_every_policy_of_every_pair_has_a_bar_and_its_own_table(page: str) -> None:
    (scheduling,) = (one for one in FILES if one.name == "scheduling.json")
    for cell in scheduling.content.at("cells").elements():
        trace, hardware = cell.at("trace").text(), cell.at("hardware").text()
        head = page.index(f"<h4>{trace}, {hardware}</h4>")
        drawing = page[head : page.index("</figure>", head)]
        assert f">{cell.at('policy').text()}</text>" in drawing
        if cell.get("common") is not None:
            assert f"<summary>{trace}, {hardware}: curves, tails and table" in page


def test_paragraphs_that_say_why_are_on_the_page(page: str) -> None:
    claims = re.findall(r"^\*\*(\w[^*`|]+)\*\*", TEXT, re.MULTILINE)
    assert claims
    for claim in claims:
        assert f"<strong>{escape(' '.join(claim.split()))}</strong>" in page


def test_a_file_that_nobody_draws_is_listed_with_its_fields() -> None:
    content = {
        "command": "python -m benchmarks.of_tomorrow --out DIR",
        "date": "2027-01-01",
        "machine": "a machine, 2 cores",
        "quick": True,
        "some figures": [1, 2, 3],
        "by name": {"<one>": 1, "two": 2},
    }
    page = page_of([results_of("new.json", content)], "")
    assert "Other results: new.json" in page
    assert "<code>some figures</code></td><td" in page
    assert ">a list of 3<" in page
    assert "2 fields: &lt;one&gt;, two" in page
    assert "a quick look" in page.lower()


@pytest.mark.slow
@pytest.mark.parametrize("one", FILES, ids=lambda one: one.name)
def test_whatever_is_wrong_with_a_file_is_told_with_its_field(one: Results) -> None:
    """Each kind of field is taken away and replaced once."""
    content = trimmed(one.content.value)
    page_of([results_of(one.name, content)], TEXT)
    num_told = 0
    for path in kinds_of_fields(content):
        for value in MISTAKES:
            changed = copy.deepcopy(content)
            place = changed
            for key in path[:-1]:
                place = place[key]
            if value is GONE and isinstance(path[-1], str):
                del place[path[-1]]
            else:
                place[path[-1]] = value
            error = error_of(one.name, changed)
            num_told += error is not None
            assert error is None or (error.file == one.name and error.field), (path, value)
            assert error is not None or value is not NAN, path
    assert num_told > 3


def error_of(name: str, content: Any) -> ResultsUnreadable | None:
    """Of a page of that file alone; no other error may come of it."""
    try:
        page_of([results_of(name, content)], TEXT)
    except ResultsUnreadable as error:
        return error
    return None


def trimmed(value: Any) -> Any:
    """What is measured alike for many things is kept for two: enough to be drawn, and quick."""
    if isinstance(value, dict):
        is_alike = all(isinstance(one, dict) for one in value.values())
        kept = list(value.items())[: 2 if is_alike else None]
        return {key: trimmed(one) for key, one in kept}
    return [trimmed(one) for one in value[:2]] if isinstance(value, list) else value


def kinds_of_fields(content: Any) -> Iterator[list[Any]]:
    """The path of one field of each kind: of a list's elements one, and few of many names."""
    seen: set[str] = set()

    def walk(value: Any, path: list[Any], kind: str) -> Iterator[list[Any]]:
        if path and kind not in seen:
            seen.add(kind)
            yield path
        if isinstance(value, dict):
            # Names that hold a number or a blank are data: one of them is enough.
            for key, one in value.items():
                is_data = re.search(r"[ \d]", key) is not None
                yield from walk(one, [*path, key], f"{kind}.{'*' if is_data else key}")
        elif isinstance(value, list):
            for number, one in enumerate(value[:1]):
                yield from walk(one, [*path, number], f"{kind}[]")

    yield from walk(content, [], "")


def test_the_command_writes_the_page_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    assert main(["--out", str(out)]) == 0
    assert out.read_text(encoding="utf-8") == page_of(FILES, TEXT)
    assert f"{len(FILES)} files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "some.json: is no JSON"),
        ("[]", "some.json: is [], expected an object"),
        ('{"command": "python -m benchmarks.kv_push"}', "some.json, date: is missing"),
    ],
)
def test_a_file_that_is_none_of_results_is_named_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    (tmp_path / "some.json").write_text(text, encoding="utf-8")
    out = tmp_path / "page.html"
    assert main(["--results", str(tmp_path), "--out", str(out)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {told}")
    assert not out.exists()


def test_a_field_of_a_known_file_is_named_to_the_last_step(tmp_path: Path) -> None:
    content = json.loads((FOLDER / "scheduling.json").read_text(encoding="utf-8"))
    content["cells"] = content["cells"][:4]
    content["cells"][3]["common"]["ttft_ms"]["p99"] = "fast"
    with pytest.raises(ResultsUnreadable, match=r'is "fast", expected a number') as caught:
        page_of([results_of("scheduling.json", content)], "")
    assert caught.value.field == "cells[3].common.ttft_ms.p99"


def test_a_folder_without_results_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--results", str(tmp_path)]) == 1
    assert "holds no *.json" in capsys.readouterr().err


def test_all_modules_that_are_known_exist() -> None:
    for module in MAKER_BY_MODULE:
        path = FOLDER.parent / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()
