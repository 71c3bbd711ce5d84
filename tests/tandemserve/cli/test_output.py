"""Tables on narrow terminals: whatever is one word stays on one line."""

import io

from rich.console import Console

from tandemserve.cli.output import print_table_on

WORKERS = ["worker", "role", "state", "runs", "tasks", "free KV", "free swap", "address"]
ROW = ["decode-0", "decode", "ready", 3, 12, "35759/35760", "2047/2048", "127.0.0.1:35759"]


def lines_of(columns: list[str], rows: list[list[object]], width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, markup=False, highlight=False)
    print_table_on(console, "Title", columns, rows)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_workers_fit_into_eighty_columns_with_their_addresses_whole() -> None:
    lines = lines_of(WORKERS, [ROW, ROW], 80)
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert lines[-1].split() == [str(value) for value in ROW]
    assert "|" not in lines[-1].replace("│", "|")


def test_a_wide_terminal_has_lines_between_the_columns() -> None:
    lines = lines_of(WORKERS, [ROW], 120)
    assert any("│" in line for line in lines)
    assert any("127.0.0.1:35759" in line for line in lines)


def test_a_row_wider_than_the_terminal_is_not_cut() -> None:
    row: list[object] = ["x" * 40, "y" * 60]
    lines = lines_of(["one", "two"], [row], 80)
    assert lines[-1].split() == row


def test_sentences_go_on_in_the_next_line() -> None:
    lines = lines_of(["id", "waits for"], [["a" * 32, "room for a prompt " * 6]], 80)
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert " ".join(lines).count("prompt") == 6
