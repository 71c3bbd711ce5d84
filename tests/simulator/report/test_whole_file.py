"""A report replaces the one before it, or leaves it alone."""

import os
from pathlib import Path
from threading import Thread

import pytest

from simulator.report.whole_file import replace_file


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("before")
    replace_file(path, "é\n")
    assert path.read_text("utf-8") == "é\n"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_file_before_it(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("before")
    with pytest.raises(UnicodeEncodeError):
        replace_file(path, "half a letter: \ud800")
    assert path.read_text("utf-8") == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        replace_file(tmp_path / "none" / "out.json", "text")


def test_a_pipe_is_written_into_and_stays_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[str] = []
    reader = Thread(target=lambda: read.append(path.read_text("utf-8")), daemon=True)
    reader.start()
    replace_file(path, "text")
    reader.join(timeout=10)
    assert read == ["text"]
    assert path.is_fifo()


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    link.symlink_to(target)
    replace_file(link, "text")
    assert link.is_symlink()
    assert target.read_text("utf-8") == "text"
