"""A table with a header line: columns by name, rows of the right width."""

import csv
from collections.abc import Iterator

from simulator.traces.errors import TraceFormatUnknown, TraceLineInvalid, shown
from simulator.traces.lines import TraceLines


class CsvTable:
    """The table whose header is `header`; `lines` are those behind it."""

    def __init__(self, source: TraceLines, header: str, lines: Iterator[str]) -> None:
        """Raises: TraceLineInvalid, if a column is named twice."""
        self.source = source
        self.columns = header_columns(header)
        self._lines = lines
        if len(set(self.columns)) < len(self.columns):
            raise TraceLineInvalid(source.path, source.number, "names a column twice")

    def index(self, column: str) -> int | None:
        """Where in a row the column stands."""
        return self.columns.index(column) if column in self.columns else None

    def require(self, column: str) -> int:
        """Where in a row the column stands. Raises: TraceFormatUnknown."""
        found = self.index(column)
        if found is None:
            raise TraceFormatUnknown(
                self.source.path,
                self.source.number,
                f"the header has no column {column}",
                f"it names {', '.join(self.columns)}; add the column",
            )
        return found

    def rows(self) -> Iterator[list[str]]:
        """Raises: TraceLineInvalid."""
        num_columns = len(self.columns)
        path, source = self.source.path, self.source
        try:
            for row in csv.reader(self._lines, strict=True):
                if len(row) != num_columns:
                    raise TraceLineInvalid(
                        path,
                        source.number,
                        f"{len(row)} values where the header names {num_columns} "
                        f"(first value {shown(row[0] if row else '')})",
                    )
                yield row
        except csv.Error as error:
            raise TraceLineInvalid(path, source.number, f"is not CSV ({error})") from None


def header_columns(header: str) -> tuple[str, ...]:
    """Names in a header line; () if it is not CSV."""
    try:
        return tuple(name.strip() for name in next(csv.reader([header], strict=True), []))
    except csv.Error:
        return ()
