"""Files of results, read field by field: a mistake names its file and its field.

What a file holds is decided by who wrote it, `benchmarks.NAME` of its command, not by its name.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MODULE = re.compile(r"\bbenchmarks\.([a-z_0-9.]+)")
# A file of results is some 500 KB at most; this is no such file.
_MAX_BYTES = 64 * 2**20


class ResultsUnreadable(ValueError):
    """A file is not what its command writes."""

    def __init__(self, file: str, field: str, problem: str) -> None:
        where = f"{file}, {field}" if field else file
        super().__init__(f"{where}: {problem}; write it again by its command, or take it away")
        self.file, self.field, self.problem = file, field, problem


@dataclass(frozen=True, slots=True)
class Field:
    """A value, and where it stands."""

    file: str
    # Like cells[3].common.ttft_ms; "" is the whole file.
    path: str
    value: Any

    def at(self, key: str) -> "Field":
        """What is under that name. Raises: ResultsUnreadable."""
        found = self._under(key)
        if found is None:
            raise ResultsUnreadable(self.file, self._path_of(key), "is missing")
        return found

    def get(self, key: str) -> "Field | None":
        """The same; None where it is missing or null. Raises: ResultsUnreadable."""
        found = self._under(key)
        return None if found is None or found.value is None else found

    def items(self) -> list[tuple[str, "Field"]]:
        """Of an object. Raises: ResultsUnreadable."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return [(key, Field(self.file, self._path_of(key), one)) for key, one in self.value.items()]

    def elements(self) -> list["Field"]:
        """Of a list. Raises: ResultsUnreadable."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return [
            Field(self.file, f"{self.path}[{number}]", one) for number, one in enumerate(self.value)
        ]

    def number(self) -> float:
        """Finite. Raises: ResultsUnreadable."""
        is_number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if not is_number or not math.isfinite(self.value):
            raise self.wrong("a number")
        return float(self.value)

    def numbers(self) -> list[float]:
        """At least one; a number alone is a list of one. Raises: ResultsUnreadable."""
        if not isinstance(self.value, list):
            return [self.number()]
        if not self.value:
            raise self.wrong("numbers")
        return [one.number() for one in self.elements()]

    def positives(self) -> list[float]:
        """As `numbers`, above 0: something is divided by them. Raises: ResultsUnreadable."""
        found = self.numbers()
        if min(found) <= 0:
            raise self.wrong("numbers above 0")
        return found

    def text(self) -> str:
        """Raises: ResultsUnreadable."""
        if not isinstance(self.value, str):
            raise self.wrong("a text")
        return self.value

    def flag(self) -> bool:
        """Raises: ResultsUnreadable."""
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def wrong(self, expected: str) -> ResultsUnreadable:
        """The error that says what should stand here."""
        shown = json.dumps(self.value)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}..."
        return ResultsUnreadable(self.file, self.path, f"is {shown}, expected {expected}")

    def _under(self, key: str) -> "Field | None":
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        if key not in self.value:
            return None
        return Field(self.file, self._path_of(key), self.value[key])

    def _path_of(self, key: str) -> str:
        plain = key if re.fullmatch(r"[\w.]+", key) else json.dumps(key)
        return f"{self.path}.{plain}" if self.path else plain


@dataclass(frozen=True, slots=True)
class Outcome:
    """A target of a file, and whether it was met."""

    what: str
    values: tuple[float, ...]
    target: str
    is_met: bool


@dataclass(frozen=True, slots=True)
class Results:
    """One file: what `benchmarks.record` writes around all figures, and these."""

    name: str
    # After `benchmarks.`: who wrote it.
    module: str
    command: str
    date: str
    machine: str
    is_quick: bool
    # How many processes wanted to run in the minute before; None in old files.
    load_1min: float | None
    outcomes: tuple[Outcome, ...]
    content: Field

    @property
    def source(self) -> str:
        """Where a figure comes from, in a line."""
        quick = ", a quick look and no measurement" if self.is_quick else ""
        return f"{self.name}: {self.command}; {self.date}; {self.machine}{quick}"

    @property
    def anchor(self) -> str:
        """Its place on the page."""
        return "file-" + re.sub(r"[^a-z0-9]+", "-", self.name.lower())


def read_results(folder: Path) -> list[Results]:
    """All *.json of a folder, by name. Raises: ResultsUnreadable, OSError."""
    return [_read(path) for path in sorted(folder.glob("*.json"))]


def results_of(name: str, content: Any) -> Results:
    """A file that has been parsed. Raises: ResultsUnreadable."""
    whole = Field(name, "", content)
    _check_finite(whole)
    command = whole.at("command").text()
    module = _MODULE.search(command)
    load = whole.get("load_1min")
    targets = whole.get("targets")
    return Results(
        name=name,
        module=module[1] if module else "",
        command=command,
        date=whole.at("date").text(),
        machine=whole.at("machine").text(),
        is_quick=whole.at("quick").flag(),
        load_1min=None if load is None else load.number(),
        outcomes=_outcomes(targets.elements() if targets is not None else ()),
        content=whole,
    )


def _read(path: Path) -> Results:
    if path.stat().st_size > _MAX_BYTES:
        raise ResultsUnreadable(path.name, "", f"is larger than {_MAX_BYTES // 2**20} MiB")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ResultsUnreadable(path.name, "", f"is no JSON ({error})") from None
    return results_of(path.name, content)


def _check_finite(field: Field) -> None:
    """JSON knows no NaN, but what writes our files does."""
    if isinstance(field.value, float):
        field.number()
    elif isinstance(field.value, dict):
        for _, one in field.items():
            _check_finite(one)
    elif isinstance(field.value, list):
        for one in field.elements():
            _check_finite(one)


def _outcomes(targets: Sequence[Field]) -> tuple[Outcome, ...]:
    return tuple(
        Outcome(
            one.at("what").text(),
            tuple(one.at("values").numbers()),
            one.at("target").text(),
            one.at("is_met").flag(),
        )
        for one in targets
    )
