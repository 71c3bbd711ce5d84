"""What a part has found so far, on disk: whatever ends the part, its figures stay."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.record import Target
from runtime.clock import Clock, MonotonicClock


class Journal:
    """Written anew with every entry."""

    def __init__(self, path: Path, seconds: float, clock: Clock | None = None) -> None:
        """`seconds` is how long the part may take."""
        self.path = path
        self._clock = clock or MonotonicClock()
        self._ends_at_s = self._clock.now() + seconds
        self._content: dict[str, Any] = {
            "facts": {},
            "rows": [],
            "skipped": [],
            "targets": [],
            "files": [],
            "is_complete": False,
        }

    @property
    def seconds_left(self) -> float:
        return self._ends_at_s - self._clock.now()

    def note(self, **facts: Any) -> None:
        """What holds for all rows."""
        self._content["facts"].update(facts)
        self._write()

    def row(self, row: Mapping[str, Any], *targets: Target) -> None:
        """One measurement, and what it should have been."""
        self._content["rows"].append(dict(row))
        self._content["targets"] += [target.as_json() for target in targets]
        for target in targets:
            print(target.line(), flush=True)
        self._write()

    def skip(self, what: str, why: str) -> None:
        """Something was not measured."""
        self._content["skipped"].append({"what": what, "why": why})
        self._write()

    def has_time(self, what: str, least_s: float = 2.0) -> bool:
        """Whether to begin with it; what there is no time for is noted as skipped."""
        if self.seconds_left >= least_s:
            return True
        self.skip(what, "the time of this part was over")
        return False

    def file(self, name: str) -> Path:
        """A file beside the journal, which is kept with the results under this name."""
        self._content["files"].append(name)
        self._write()
        return self.path.parent / name

    def finish(self) -> None:
        """Everything was measured or skipped."""
        self._content["is_complete"] = True
        self._write()

    def _write(self) -> None:
        # A reader never meets half of it.
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(self._content, indent=1), encoding="utf-8")
        os.replace(beside, self.path)


def read_journal(path: Path) -> dict[str, Any]:
    """What a part had found when it ended; {} where it never came to write."""
    if not path.exists():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
