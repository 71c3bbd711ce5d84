"""What a file of results says of itself, and how spreads and targets are written everywhere."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Target:
    """One figure beside what it should be; the median decides."""

    what: str
    values: tuple[float, ...]
    bound: float
    # The bound is the most that is allowed, not the least.
    is_limit: bool = False
    digits: int = 2

    @property
    def is_met(self) -> bool:
        middle = statistics.median(self.values)
        return middle <= self.bound if self.is_limit else middle >= self.bound

    def line(self) -> str:
        """As it is printed."""
        return (
            f"{'met   ' if self.is_met else 'MISSED'}  {self.what}: "
            f"{spread(self.values, self.digits)}, target "
            f"{'<=' if self.is_limit else '>='} {self.bound:.{self.digits}f}"
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.what,
            "median": statistics.median(self.values),
            "values": list(self.values),
            "target": f"{'<=' if self.is_limit else '>='} {self.bound:g}",
            "is_met": self.is_met,
        }


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Median (lowest-highest); one value stands alone."""
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def print_targets(targets: Sequence[Target]) -> None:
    """One line each."""
    for target in targets:
        print(target.line())


def write_results(
    path: Path, figures: Mapping[str, Any], targets: Sequence[Target], is_quick: bool
) -> None:
    """The figures with command, date and machine around them, as JSON."""
    write_content(
        path, {**facts(is_quick), **figures, "targets": [one.as_json() for one in targets]}
    )


def write_content(path: Path, content: Mapping[str, Any]) -> None:
    """A file of results whose facts and targets are in it already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"written to {path}")


def facts(is_quick: bool) -> dict[str, Any]:
    """Command, date, machine, and how busy it was in the minutes before."""
    return {
        "command": command(),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "python": platform.python_version(),
        # A look at whether the program runs, not a measurement.
        "quick": is_quick,
        "load_1min": round(os.getloadavg()[0], 2),
    }


def command() -> str:
    """As it can be typed again; folders of this machine are left out."""
    words = ("DIR" if word.startswith("/") else word for word in sys.orig_argv[1:])
    return " ".join(("python", *words))


def machine() -> str:
    """Model of the processor and the number of cores that this process may use."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return f"{model}, {len(os.sched_getaffinity(0))} cores"
