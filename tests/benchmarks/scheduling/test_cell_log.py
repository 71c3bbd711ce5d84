from pathlib import Path

import pytest

from benchmarks.scheduling.cell_log import (
    CellLog,
    MixedSettings,
    OtherSettings,
    check_settings,
    read_entries,
)
from benchmarks.scheduling.cells import Cell

CELL = Cell("azure", "a100", "fcfs")
SETTINGS = {"seed": 0, "quick": False}


def test_what_was_measured_is_found_by_the_next_run(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    CellLog(path, SETTINGS).add(CELL, {"goodput": None})

    again = CellLog(path, SETTINGS)

    entry = again.get(CELL)
    assert entry is not None
    assert entry["goodput"] is None
    assert again.get(Cell("azure", "a100", "default")) is None


def test_a_line_that_was_cut_off_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    CellLog(path, SETTINGS).add(CELL, {"goodput": None})
    whole = path.read_text()
    path.write_text(whole + whole[:20])

    log = CellLog(path, SETTINGS)
    log.add(Cell("azure", "a100", "default"), {"goodput": None})

    assert [entry["policy"] for entry in read_entries(path)] == ["fcfs", "default"]


def test_cells_of_other_settings_are_not_mixed_in(tmp_path: Path) -> None:
    path = tmp_path / "cells.jsonl"
    CellLog(path, SETTINGS).add(CELL, {"goodput": None})

    with pytest.raises(OtherSettings, match="give another --out"):
        CellLog(path, {"seed": 1, "quick": False})


def test_a_file_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert read_entries(tmp_path / "none.jsonl") == []


def test_cells_of_different_settings_are_refused_by_the_names_of_what_differs() -> None:
    usual, tight = {"settings": SETTINGS}, {"settings": {**SETTINGS, "kv_share": 0.25, "slo": "x"}}
    check_settings([usual, usual])
    check_settings([])
    with pytest.raises(MixedSettings, match=r"kv_share is not set and 0\.25; slo is not set and x"):
        check_settings([usual, tight, usual])
    with pytest.raises(MixedSettings) as mixed:
        check_settings([usual, {"settings": {"seed": 7, "quick": False}}])
    assert mixed.value.differing == {"seed": [0, 7]}
