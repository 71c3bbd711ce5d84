"""The end of a log, and the line of it that says why its process ended."""

import re
from pathlib import Path

_MOST_BYTES = 64 * 1024
_MOST_CHARS = 400
# What runtime/logging.py writes, as text and as JSON; both below a warning.
_ROUTINE = re.compile(r'\[(info|debug) *\]|"level": "(info|debug)"')
# Inside a traceback only its last line, which is not indented, says what happened.
_TRACEBACK = re.compile(r"\s|Traceback \(most recent call last\)|During handling of|The above exc")


def last_lines(log_path: Path, offset: int = 0) -> list[str]:
    """The end of a log, as far as it lies after `offset`, without empty lines."""
    try:
        with log_path.open("rb") as log:
            end = log.seek(0, 2)
            log.seek(max(offset, end - _MOST_BYTES))
            text = log.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()]


def last_meaningful_line(log_path: Path, offset: int = 0) -> str:
    """The last line after `offset` that is neither routine nor the inside of a traceback.

    Falls back to the last line of any kind; empty when there is none or no log.
    """
    lines = last_lines(log_path, offset)
    telling = (line for line in reversed(lines) if not _is_noise(line))
    found = next(telling, lines[-1] if lines else "")
    return " ".join(found.split())[:_MOST_CHARS]


def _is_noise(line: str) -> bool:
    return _TRACEBACK.match(line) is not None or _ROUTINE.search(line) is not None
