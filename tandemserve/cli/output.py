"""Where output goes: data to stdout, everything else to stderr, JSON one value per line."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# Where there is no terminal nobody can widen it, so nothing is cut.
_WIDTH_WITHOUT_TERMINAL = 240
_WIDEST = 10_000
# A sentence in a column narrower than this cannot be read.
_MIN_TEXT_WIDTH = 12


def print_json(value: object) -> None:
    """One line on stdout, at once, so that a reader can follow a stream."""
    print(json.dumps(_plain(value), separators=(",", ":")), flush=True)


def note(line: str) -> None:
    """A line for people on stderr."""
    print(line, file=sys.stderr, flush=True)


def print_table(
    title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, stderr: bool = False
) -> None:
    """A table; numbers are right-aligned."""
    print_table_on(_console(sys.stderr if stderr else sys.stdout), title, columns, list(rows))


def print_table_on(
    console: "Console", title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    """The same where the width is known. Nothing is broken within a word.

    What is too wide for the console loses its lines first; then it is wider than the console.
    """
    table = _table(title, columns, rows, is_compact=False)
    if _least_width(table, console) > console.width:
        table = _table(title, columns, rows, is_compact=True)
    console.width = max(console.width, _least_width(table, console))
    console.print(table)


def _table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, is_compact: bool
) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title or None, title_justify="left")
    if is_compact:
        table.box, table.show_edge, table.pad_edge = box.SIMPLE_HEAD, False, False
        table.padding = (0, 1, 0, 0)
    cells = [[_cell(value) for value in row] for row in rows]
    for position, column in enumerate(columns):
        is_number = bool(rows) and all(isinstance(row[position], int | float) for row in rows)
        # Only sentences may go on in a further line.
        is_text = any(" " in row[position] for row in cells)
        table.add_column(
            column,
            justify="right" if is_number else "left",
            no_wrap=not is_text,
            min_width=_MIN_TEXT_WIDTH if is_text else None,
            overflow="fold",
        )
    for row in cells:
        table.add_row(*row)
    return table


def _least_width(table: "Table", console: "Console") -> int:
    from rich.measure import Measurement

    wide = console.options.update(width=_WIDEST)
    return Measurement.get(console, wide, table).minimum


def _console(file: IO[str]) -> "Console":
    from rich.console import Console

    width = None if file.isatty() else _WIDTH_WITHOUT_TERMINAL
    # Names come from the cluster: nothing in them is markup.
    return Console(file=file, width=width, markup=False, highlight=False)


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.1f}"
        case _:
            return str(value)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
