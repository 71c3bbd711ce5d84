from pathlib import Path

import pytest

from scheduling.lifecycle import TRANSITIONS
from tools.generate_docs import (
    UnknownPart,
    decision_list,
    stale_pages,
    state_diagram,
    transition_table,
    with_generated_parts,
)

PAGE = "before\n<!-- generated: part (make docs) -->\nold\n<!-- end of part -->\nafter\n"


def test_every_transition_is_a_row_of_the_table() -> None:
    rows = transition_table().splitlines()[2:]
    assert len(rows) == len(TRANSITIONS)
    for row, transition in zip(rows, TRANSITIONS, strict=True):
        assert row.startswith(f"| `{transition.source.value}` | `{transition.change.value}` |")


def test_diagram_leaves_out_only_what_can_happen_everywhere() -> None:
    diagram = state_diagram()
    assert "decoding --> finished: sequence_ended" in diagram
    assert "decoding --> prompt_queued: preempted" in diagram
    assert "caller_left" not in diagram


def test_decisions_are_listed_by_title(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Decisions\n", "utf-8")
    (tmp_path / "push.md").write_text("# Prefill pushes\n\nWhy.\n", "utf-8")
    assert decision_list(tmp_path) == "- [Prefill pushes](push.md)\n"


def test_only_the_text_between_the_markers_changes() -> None:
    page = with_generated_parts(PAGE, {"part": lambda: "new\n"})
    assert page.startswith("before\n<!-- generated: part (make docs) -->\n")
    assert page.endswith("<!-- end of part -->\nafter\n")
    assert "new" in page
    assert "old" not in page


def test_writing_twice_changes_nothing() -> None:
    once = with_generated_parts(PAGE, {"part": lambda: "new\n"})
    assert with_generated_parts(once, {"part": lambda: "new\n"}) == once


def test_a_part_that_nobody_writes_is_an_error() -> None:
    with pytest.raises(UnknownPart, match="no generated part is called 'part'"):
        with_generated_parts(PAGE, {})


def test_a_page_with_an_old_part_is_stale(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    marked = "<!-- generated: state-diagram (make docs) -->\n<!-- end of state-diagram -->\n"
    page.write_text(marked, "utf-8")
    fresh = stale_pages(tmp_path)[page]
    assert state_diagram() in fresh
    page.write_text(fresh, "utf-8")
    assert stale_pages(tmp_path) == {}
