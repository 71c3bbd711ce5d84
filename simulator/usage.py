"""What the commands of the simulator share: their parser, their exit codes, how errors are told."""

import argparse
import math
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from router.recording.file import RecordingUnreadable
from simulator.cluster_spec import ClusterSpecInvalid
from simulator.hardware.description import HardwareUnreadable
from simulator.report.canvas import PlotsUnavailable
from simulator.slo_text import SloTextInvalid
from simulator.traces.errors import TraceError, TraceOptionInvalid, TraceRateMissing

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
_WRONG_USAGE = (ClusterSpecInvalid, SloTextInvalid, TraceOptionInvalid, TraceRateMissing)
_UNREADABLE = (TraceError, HardwareUnreadable, RecordingUnreadable)
MAX_RATE = 1e9
MAX_COUNT = 1_000_000_000


class UsageError(ValueError):
    """The command line asks for something that cannot be."""


class NothingServes(Exception):
    """A plan has found no cluster; what was looked at has been told and written."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of leaving the process."""

    def __init__(self, prog: str, description: str, examples: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """See the class."""
        raise UsageError(f"{message}; see --help")


def guarded(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    """Run a command; every error is one line on stderr and an exit code."""
    try:
        command(argv)
        sys.stdout.flush()
    except (UsageError, *_WRONG_USAGE) as error:
        _tell(error)
        return WRONG_USAGE
    except BrokenPipeError:
        # Whoever read our output has left; what Python still wants to flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (*_UNREADABLE, PlotsUnavailable, NothingServes, OSError) as error:
        _tell(error)
        return FAILED
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return INTERRUPTED
    return DONE


def _tell(error: Exception) -> None:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)


# --- values of options --------------------------------------------------------------------------


def positive(text: str) -> float:
    """A rate or a factor."""
    return _number(text, 1 / MAX_RATE, MAX_RATE)


def positives(text: str) -> list[float]:
    """Some of them, with commas in between; ascending, each once."""
    return sorted({positive(part) for part in text.split(",")})


def count(text: str) -> int:
    """A whole number, at least 1."""
    if not text.isdecimal() or not 1 <= int(text) <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {MAX_COUNT}")
    return int(text)


def share(text: str) -> float:
    """More than 0, at most 1."""
    return _number(text, 1e-6, 1.0)


def step(text: str) -> float:
    """A relative step."""
    return _number(text, 0.001, 1.0)


def gib(text: str) -> float:
    """Memory; 0 is none."""
    return _number(text, 0.0, 1e6)


def _number(text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from {least:g} to {most:g}")
    return value


def file_to_write(text: str) -> Path:
    """A file in a folder that takes it, so that a long run is not for nothing."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; give a file")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{path.parent} is no folder; make it first")
    # A pipe or a device takes what is written whatever its folder takes.
    if path.is_file() or not (path.exists() or path.is_symlink()):
        _check_takes_files(path.parent)
    return path


def folder_to_write(text: str) -> Path:
    """A folder that takes files; made if it is not there, but not before the run."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file; give a folder")
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{there} is a file, no folder; give another place")
    _check_takes_files(there)
    return path


def _check_takes_files(folder: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"nothing can be written to {folder} ({error.strerror}); give another place"
        ) from None
