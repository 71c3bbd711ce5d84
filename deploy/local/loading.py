"""How far processes have come that are not ready yet, by what they last wrote into their logs.

Workers write lines for this (worker/loading_log.py); others, and those that write no such lines,
are told of by what the router knows of them.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.local.log_tail import last_lines
from worker.loading_log import EVENT

# As runtime/logging.py writes it for people: name=value, quoted where there is a space in it.
_FIELD = re.compile(r"\b(phase|percent)=(?:'([^']*)'|\"([^\"]*)\"|(\S+))")
_TEXT = re.compile(rf"\[info *\] {EVENT} ")


@dataclass(frozen=True, slots=True)
class Loading:
    """What a process does before it is ready."""

    phase: str
    # Of this phase, where it is counted.
    percent: int | None = None

    def __str__(self) -> str:
        return self.phase if self.percent is None else f"{self.phase} {self.percent} %"

    def as_fields(self) -> dict[str, str | int]:
        """For programs."""
        done = {} if self.percent is None else {"percent": self.percent}
        return {"phase": self.phase, **done}


@dataclass(frozen=True, slots=True)
class StartNews:
    """What those do that somebody waits for."""

    elapsed_s: float
    loading_by_process: Mapping[str, Loading]

    def __str__(self) -> str:
        waited = "; ".join(f"{name}: {what}" for name, what in self.loading_by_process.items())
        return f"after {self.elapsed_s:.0f} s {waited}"

    def as_json(self) -> str:
        """One line for programs."""
        processes = {name: what.as_fields() for name, what in self.loading_by_process.items()}
        news = {"event": EVENT, "elapsed_s": round(self.elapsed_s, 1), "processes": processes}
        return json.dumps(news, separators=(",", ":"))


def last_loading(log_path: Path, offset: int = 0) -> Loading | None:
    """By the last such line of the log after `offset`; None where there is none."""
    lines = (line for line in reversed(last_lines(log_path, offset)) if EVENT in line)
    return next((found for line in lines if (found := _read(line)) is not None), None)


def _read(line: str) -> Loading | None:
    if _TEXT.search(line):
        fields = {
            name: quoted or double or bare for name, quoted, double, bare in _FIELD.findall(line)
        }
    else:
        try:
            fields = json.loads(line)
        except ValueError:
            return None
        if not isinstance(fields, dict) or fields.get("event") != EVENT:
            return None
    percent = fields.get("percent")
    return Loading(str(fields.get("phase")), None if percent is None else int(percent))


def next_news_after(elapsed_s: float) -> float:
    """When to tell again, in seconds after the start: often at first, then ever less often."""
    return elapsed_s + max(2.0, elapsed_s / 4)
