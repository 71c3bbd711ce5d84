"""Runs the parts one after the other, each in a process group of its own and within its time.

A part that fails, hangs or breaks the device's context takes nothing with it but itself.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.journal import read_journal
from runtime.clock import Clock

# Shares of the whole time. What a part leaves is for those after it.
SHARES: Mapping[str, float] = {
    "decode": 0.22,
    "prefill": 0.1,
    "push": 0.15,
    "layout": 0.05,
    "prefix": 0.05,
    "profile": 0.13,
    # Loading the model into three workers is most of it.
    "cluster": 0.3,
}
# Beyond its time, for a part to end by itself.
GRACE_S = 10.0
_LEAST_S = 5.0
_ERROR_CHARACTERS = 3000


@dataclass(frozen=True, slots=True)
class PartRun:
    """How a part ended, and what it had found by then."""

    name: str
    # "ran", "failed", "out of time" or "not run".
    outcome: str
    seconds: float
    why: str
    journal: Mapping[str, Any]

    def as_json(self) -> dict[str, Any]:
        found = {name: one for name, one in self.journal.items() if name != "targets"}
        why = {"why": self.why} if self.why else {}
        return {"outcome": self.outcome, **why, "seconds": round(self.seconds, 1), **found}


def seconds_for(name: str, waiting: Sequence[str], left_s: float) -> float:
    """The share of a part of what is left for it and those that wait behind it."""
    whole = sum(SHARES[one] for one in (name, *waiting))
    return left_s * SHARES[name] / whole


def run_part(
    name: str, arguments: Sequence[str], folder: Path, seconds: float, clock: Clock
) -> PartRun:
    """Run it as `benchmarks.gpu.part`; its journal, log and files are written to `folder`."""
    journal, log = folder / f"{name}.json", folder / f"{name}.log"
    if seconds < _LEAST_S:
        return PartRun(name, "not run", 0.0, "no time was left for it", {})
    command = [
        *(sys.executable, "-m", "benchmarks.gpu.part", name, *arguments),
        *("--journal", str(journal), "--seconds", f"{seconds:.1f}"),
    ]
    started = clock.now()
    with log.open("wb") as errors:
        process = subprocess.Popen(command, stderr=errors, start_new_session=True)
        try:
            code: int | None = process.wait(seconds + GRACE_S)
        except subprocess.TimeoutExpired:
            code = None
            _interrupt(process)
        finally:
            _end_group(process)
    took, found = clock.now() - started, read_journal(journal)
    if code == 0:
        return PartRun(name, "ran", took, "", found)
    said = log.read_text(encoding="utf-8", errors="replace").strip()[-_ERROR_CHARACTERS:]
    if code is None:
        return PartRun(name, "out of time", took, said, found)
    return PartRun(name, "failed", took, f"exit code {code}: {said}", found)


def keep_files(run: PartRun, folder: Path, out: Path) -> None:
    """Copy what the part wrote beside its journal to where the results are."""
    for name in run.journal.get("files", ()):
        # Logs are for those who look for an error.
        is_wanted = run.outcome != "ran" or not name.endswith(".log")
        if is_wanted and (folder / name).exists():
            shutil.copyfile(folder / name, out.with_name(f"{out.stem}_{name}"))


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """Let it remove what it has written to memory and stop what it has started."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Whatever it has started and left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
