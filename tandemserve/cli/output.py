"""Where output goes: data to stdout, everything else to stderr, JSON one value per line."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

# Where there is no terminal nobody can widen it, so nothing is cut.
_WIDTH_WITHOUT_TERMINAL = 240


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
    from rich.table import Table

    rows = [list(row) for row in rows]
    table = Table(title=title or None, title_justify="left")
    for position, column in enumerate(columns):
        is_number = bool(rows) and all(isinstance(row[position], int | float) for row in rows)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    _print_rich(table, sys.stderr if stderr else sys.stdout)


def _print_rich(table: "Table", file: IO[str]) -> None:
    from rich.console import Console

    width = None if file.isatty() else _WIDTH_WITHOUT_TERMINAL
    # Names come from the cluster: nothing in them is markup.
    Console(file=file, width=width, markup=False, highlight=False).print(table)


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
