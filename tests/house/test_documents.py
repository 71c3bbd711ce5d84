"""Documents point only at what exists."""

import re
from pathlib import Path

import pytest

_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")
# `router/core.py`, `docs/decisions/`: a path from the root of the checkout.
_PATH = re.compile(r"`([a-z_.]+(?:/[A-Za-z0-9_.-]+)+/?)`")
_TARGET = re.compile(r"`make ([a-z-]+)`|^make ([a-z-]+)", re.MULTILINE)


@pytest.fixture(scope="module")
def pages(root: Path, files: list[Path]) -> dict[Path, str]:
    """Every hand-written page."""
    return {path: (root / path).read_text("utf-8") for path in files if path.suffix == ".md"}


def test_links_lead_to_files(root: Path, pages: dict[Path, str]) -> None:
    broken = [
        f"{page}: {target}"
        for page, text in pages.items()
        for target in _LINK.findall(text)
        if not (root / page.parent / target).exists()
    ]
    assert broken == []


def test_paths_in_the_text_exist(root: Path, pages: dict[Path, str]) -> None:
    missing = [
        f"{page}: {path}"
        for page, text in pages.items()
        for path in _PATH.findall(text)
        if (root / path.split("/")[0]).is_dir() and not (root / path).exists()
    ]
    assert missing == []


def test_make_targets_in_the_text_exist(root: Path, pages: dict[Path, str]) -> None:
    makefile = (root / "Makefile").read_text("utf-8")
    known = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = {a or b for text in pages.values() for a, b in _TARGET.findall(text)}
    assert named <= known


def test_every_page_is_reachable_from_the_readme(root: Path, pages: dict[Path, str]) -> None:
    to_visit, seen = [Path("README.md")], set[Path]()
    while to_visit:
        page = to_visit.pop()
        if page in seen:
            continue
        seen.add(page)
        for target in _LINK.findall(pages.get(page, "")):
            to_visit.append((root / page.parent / target).resolve().relative_to(root))
    ours = {page for page in pages if page.parts[0] == "docs" or len(page.parts) == 1}
    assert ours - seen == set()
