"""Cells that are measured, a line of JSON each: what is there is not measured again."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.scheduling.cells import Cell

Entry = Mapping[str, Any]


class OtherSettings(ValueError):
    """The file holds cells that were measured in another way."""

    def __init__(self, path: Path, there: object, asked: object) -> None:
        super().__init__(
            f"{path} was measured with {there}, not with {asked}; give another --out, or the "
            "options that it was begun with"
        )


class MixedSettings(ValueError):
    """Cells that were measured in different ways say nothing beside each other."""

    def __init__(self, differing: Mapping[str, Sequence[object]]) -> None:
        told = "; ".join(
            f"{name} is {' and '.join(map(_shown, values))}" for name, values in differing.items()
        )
        super().__init__(
            f"these cells were measured in different ways: {told}; make a report of each"
        )
        self.differing = differing


def check_settings(entries: Iterable[Entry]) -> None:
    """Whether all were measured in one way. Raises: MixedSettings."""
    found = [entry["settings"] for entry in entries]
    differing: dict[str, list[object]] = {}
    for name in dict.fromkeys(name for settings in found for name in settings):
        values: list[object] = []
        for settings in found:
            if settings.get(name) not in values:
                values.append(settings.get(name))
        if len(values) > 1:
            differing[name] = values
    if differing:
        raise MixedSettings(differing)


def _shown(value: object) -> str:
    return "not set" if value is None else str(value)


def cell_of(entry: Entry) -> Cell:
    """Which one it is."""
    return Cell(entry["trace"], entry["hardware"], entry["policy"])


def read_entries(path: Path) -> list[Entry]:
    """All whole lines; none where there is no such file. A last line that is cut off is dropped."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    whole, _, _ = text.rpartition("\n")
    return [json.loads(line) for line in whole.splitlines() if line]


class CellLog:
    """Appends; a run that is stopped loses the cell that it was at."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Raises: OtherSettings."""
        self._path = path
        self._settings = dict(settings)
        entries = read_entries(path)
        for entry in entries:
            if entry["settings"] != self._settings:
                raise OtherSettings(path, entry["settings"], self._settings)
        self._entry_by_cell = {cell_of(entry): entry for entry in entries}
        if path.exists():
            # Without what was cut off.
            self._write("w", entries)

    def get(self, cell: Cell) -> Entry | None:
        """What was measured, or None."""
        return self._entry_by_cell.get(cell)

    def add(self, cell: Cell, measured: Mapping[str, Any]) -> Entry:
        """Keep it, on disk first."""
        names = {"trace": cell.trace, "hardware": cell.hardware, "policy": cell.policy}
        entry = {**names, "settings": self._settings, **measured}
        self._write("a", [entry])
        self._entry_by_cell[cell] = entry
        return entry

    def _write(self, mode: str, entries: list[Entry]) -> None:
        with self._path.open(mode, encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in entries)
