"""What is wrong with a trace, by name: which file, which line, which field, and what to do.

TraceError                  a ValueError
├── TraceOptionInvalid      an option of reading has a value that none may have
├── TraceRateMissing        the file has no arrival times, and no rate was given
├── TraceNotReadable        there is no such file, or it may not be read
├── TraceDamaged            cut off, or not what its first bytes promise
├── TraceEmpty              no request in it
├── TraceFormatUnknown      neither columns nor fields of a format that we know
├── TraceNotAWorkload       a table that we know, and that says something else
├── TraceLineInvalid        a line is no row, or no JSON object
├── TraceFieldInvalid       a field is missing or has a value that it cannot have
└── TraceTooLarge           more than we hold in memory
"""

from pathlib import Path

_MAX_SHOWN = 60


def shown(value: object) -> str:
    """A value as an error message shows it: in quotes where it is text, cut where it is long."""
    # Cut before repr: the value may be megabytes.
    text = repr(value[: _MAX_SHOWN + 1]) if isinstance(value, str) else _repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _repr(value: object) -> str:
    try:
        return repr(value)
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"


class FieldProblem(Exception):
    """What is wrong with a field, before anybody said in which file and line it stands."""

    def __init__(self, field: str, value: object, expected: str) -> None:
        super().__init__(f"{field} is {shown(value)}, expected {expected}")
        self.field, self.value, self.expected = field, value, expected


class FieldMissing(FieldProblem):
    """The line lacks a field."""

    def __init__(self, field: str) -> None:
        super().__init__(field, "missing", "a value")
        self.args = (f"{field} is missing",)


class TraceError(ValueError):
    """A trace cannot be read as asked. The message ends in what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class TraceOptionInvalid(TraceError):
    """An option of reading is outside its range."""

    def __init__(self, option: str, value: object, expected: str) -> None:
        super().__init__(f"{option} is {shown(value)}; give {expected}")
        self.option, self.value, self.expected = option, value, expected


class TraceRateMissing(TraceError):
    """The file says how long requests are, not when they arrive."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(
            f"{path}: {what}, without arrival times; give rate_rps (--rate), how many requests per "
            "second are to arrive"
        )
        self.path = path


class TraceNotReadable(TraceError):
    """The file cannot be opened or read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; check the path and its permissions")
        self.path = path


class TraceDamaged(TraceError):
    """The bytes are cut off or changed; `line` is the last one that could be read."""

    def __init__(self, path: Path, line: int, problem: str, to_do: str) -> None:
        super().__init__(f"{path}, line {line}: {problem}; {to_do}")
        self.path, self.line = path, line


class TraceEmpty(TraceError):
    """The file holds no request."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}; copy it again from where it came from")
        self.path = path


class TraceFormatUnknown(TraceError):
    """The first line is of no format that we know."""

    def __init__(self, path: Path, line: int, found: str, known: str) -> None:
        super().__init__(f"{path}, line {line}: {found}; {known} (docs/traces.md)")
        self.path, self.line = path, line


class TraceNotAWorkload(TraceError):
    """A table that we know, which holds no requests."""

    def __init__(self, path: Path, what: str, to_do: str) -> None:
        super().__init__(f"{path}: {what}, not requests; {to_do}")
        self.path = path


class TraceLineInvalid(TraceError):
    """A line as a whole is wrong."""

    def __init__(self, path: Path, line: int, problem: str) -> None:
        super().__init__(f"{path}, line {line}: {problem}; correct the line or leave it out")
        self.path, self.line = path, line


class TraceFieldInvalid(TraceError):
    """A field is missing, or has a value that it cannot have."""

    def __init__(self, path: Path, line: int, problem: FieldProblem) -> None:
        super().__init__(f"{path}, line {line}: {problem}; correct the line or leave it out")
        self.path, self.line = path, line
        self.field, self.value, self.expected = problem.field, problem.value, problem.expected


class TraceTooLarge(TraceError):
    """Reading all of it would need more memory than we take."""

    def __init__(self, path: Path, problem: str, to_do: str) -> None:
        super().__init__(f"{path}: {problem}; {to_do}")
        self.path = path
