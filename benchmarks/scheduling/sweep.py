"""Goes through the cells that are missing, on several processes, and keeps each when it is there.

Of each pair the reference comes first, because the others' rates are taken from it. Only this
process writes the log; stopped at any moment, it loses what was being measured and nothing else.
"""

import argparse
import heapq
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.scheduling.cell_log import CellLog, Entry, OtherSettings
from benchmarks.scheduling.cells import HARDWARE, REFERENCE, TRACES, Cell, Pair, pairs
from benchmarks.scheduling.measuring import CellSettings, Measuring, Subject
from scheduling.policies import POLICIES
from simulator.hardware.description import HardwareUnreadable
from simulator.load import DEFAULT_SWAP_GIB
from simulator.slo_text import SloTextInvalid
from simulator.traces.errors import TraceError

_REFERENCE = Subject(REFERENCE, POLICIES[REFERENCE])


@dataclass(frozen=True, slots=True, order=True)
class _Task:
    """A cell; those of an earlier pair come first, and in a pair they keep their order."""

    place: tuple[int, int]
    pair: Pair = field(compare=False)
    subject: Subject = field(compare=False)

    @property
    def cell(self) -> Cell:
        return Cell(self.pair.trace.stem, self.pair.hardware, self.subject.name)


@dataclass(frozen=True, slots=True)
class _Done:
    task: _Task
    measured: dict[str, Any]
    took_s: float


class NotMeasurable(ValueError):
    """Something that was asked for is not there, or says nothing. One argument: it travels from the
    process that measures."""


# What measures a task with the reference of its pair, and calls back.
_Submit = Callable[[_Task, Entry | None, Callable[[object], None]], None]


def add_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Which cells, and how they are measured."""
    add = parser.add_argument
    add("--traces", type=Path, required=True, metavar="DIR")
    add("--out", type=Path, default=Path(out), metavar="FILE.jsonl")
    add("--hardware", default=",".join(HARDWARE), metavar="A,B")
    add("--only", default="", metavar="A,B", help="traces whose names begin so")
    add("--pairs", metavar="TRACE/HARDWARE,..", help="beginnings of names, in this order")
    add("--seed", type=int, default=0)
    add("--kv-share", type=_share, default=1.0, metavar="X", help="of the hardware's KV memory")
    about = (
        "as of tandem simulate; published: what it takes without --slo, even where an idle cluster "
        "misses it (default: these, or Splitwise's where more than 5 %% miss them so)"
    )
    add("--slo", metavar="GOALS", help=about)
    about = f"host memory of a worker for KV that makes room (default: {DEFAULT_SWAP_GIB})"
    add("--swap-gib", type=float, default=DEFAULT_SWAP_GIB, metavar="GIB", help=about)
    add("--jobs", type=int, default=1, metavar="N", help="processes")
    add("--quick", action="store_true", help="small pieces: does the program run")
    add("--minutes", type=float, default=1e9, help="begin no cell after so many")


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is no share; give more than 0, at most 1")
    return share


def pairs_asked(options: argparse.Namespace) -> list[Pair]:
    """Of `--pairs`, or of `--only` and `--hardware`. Raises: NotMeasurable where one names
    nothing."""
    if options.pairs is None:
        stems = tuple(options.only.split(","))
        traces = [trace for trace in TRACES if trace.stem.startswith(stems)]
        return pairs(traces, options.hardware.split(","))
    asked: list[Pair] = []
    for text in options.pairs.split(","):
        stem, _, machine = text.partition("/")
        found = [
            Pair(trace, hardware)
            for trace in TRACES
            for hardware in HARDWARE
            if trace.stem.startswith(stem) and hardware.startswith(machine)
        ]
        if not found:
            raise NotMeasurable(f"--pairs: {text!r} names nothing; write for example azure/a100")
        asked += found
    return asked


def run_sweep(options: argparse.Namespace, subjects: Sequence[Subject]) -> int:
    """Measure what the options ask for. Returns the exit code: 2, and a line on stderr, where that
    cannot be measured."""
    try:
        Sweep(options).run(pairs_asked(options), subjects)
    except (NotMeasurable, OtherSettings) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


class Sweep:
    """One file of cells."""

    def __init__(self, options: argparse.Namespace) -> None:
        """Raises: OtherSettings."""
        self._settings = CellSettings(
            options.seed, options.quick, options.kv_share, options.slo, options.swap_gib
        )
        self._folder: Path = options.traces
        self._jobs: int = options.jobs
        self._log = CellLog(options.out, self._settings.as_json())
        self._ends_at_s = time.monotonic() + 60 * options.minutes

    def run(self, asked: Sequence[Pair], subjects: Sequence[Subject]) -> None:
        """Every cell of these that is missing, and the reference of each pair.

        Raises: NotMeasurable.
        """
        if self._jobs == 1:
            _begin(self._folder, self._settings)
            self._go(asked, subjects, lambda *task: task[2](_measure(*task[:2])))
            return
        # A pool that says so when one of its processes has died; not forked, since this process may
        # have threads.
        with ProcessPoolExecutor(
            self._jobs, get_context("spawn"), _begin, (self._folder, self._settings)
        ) as pool:
            # Ending by a signal goes through here, so that nobody is left behind.
            before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
            try:
                self._go(asked, subjects, _submitting_to(pool))
            except BaseException:
                for process in active_children():
                    process.kill()
                raise
            finally:
                signal.signal(signal.SIGTERM, before)

    def _go(self, asked: Sequence[Pair], subjects: Sequence[Subject], submit: _Submit) -> None:
        ready, waiting = self._missing(asked, subjects)
        results: SimpleQueue[object] = SimpleQueue()
        num_running = 0
        while True:
            while ready and num_running < self._jobs and time.monotonic() < self._ends_at_s:
                task = heapq.heappop(ready)
                submit(task, self._reference(task.pair), results.put)
                num_running += 1
            if not num_running:
                return
            done = results.get()
            num_running -= 1
            if not isinstance(done, _Done):
                assert isinstance(done, BaseException)
                raise done
            _tell(self._log.add(done.task.cell, done.measured), done.took_s)
            for task in waiting.pop(done.task.pair, ()):
                heapq.heappush(ready, task)

    def _missing(
        self, asked: Sequence[Pair], subjects: Sequence[Subject]
    ) -> tuple[list[_Task], dict[Pair, list[_Task]]]:
        """Those that can begin, and those that wait for their reference."""
        ready: list[_Task] = []
        waiting: dict[Pair, list[_Task]] = {}
        for number, pair in enumerate(dict.fromkeys(asked)):
            others = [subject for subject in subjects if subject.name != REFERENCE]
            tasks = [
                _Task((number, place), pair, subject)
                for place, subject in enumerate([_REFERENCE, *others])
            ]
            missing = [task for task in tasks if self._log.get(task.cell) is None]
            if missing and missing[0].subject is _REFERENCE:
                waiting[pair] = missing[1:]
                missing = missing[:1]
            ready += missing
        heapq.heapify(ready)
        return ready, waiting

    def _reference(self, pair: Pair) -> Entry | None:
        return self._log.get(Cell(pair.trace.stem, pair.hardware, REFERENCE))


def _submitting_to(pool: Executor) -> _Submit:
    def submit(task: _Task, reference: Entry | None, done: Callable[[object], None]) -> None:
        future = pool.submit(_measure, task, reference)
        future.add_done_callback(lambda ended: done(ended.exception() or ended.result()))

    return submit


# Of a process that measures.
_measuring: list[Measuring] = []


def _begin(folder: Path, settings: CellSettings) -> None:
    _measuring[:] = [Measuring(folder, settings)]


def _measure(task: _Task, reference: Entry | None) -> _Done:
    began_at_s = time.monotonic()
    try:
        measured = _measuring[0].cell(task.pair, task.subject, reference)
    except (SloTextInvalid, TraceError, HardwareUnreadable) as error:
        raise NotMeasurable(str(error)) from error
    return _Done(task, measured, time.monotonic() - began_at_s)


def _tell(entry: Entry, took_s: float) -> None:
    goodput, common = entry["goodput"], entry["common"]
    rate = "serves no rate" if goodput is None else f"{goodput['rps']:.4g} req/s"
    attained = "" if common is None else f", {100 * common['slo_attainment']:.0f} % at the common"
    names = f"{entry['trace']} {entry['hardware']} {entry['policy']}"
    print(f"{names}: {rate}{attained} ({took_s:.0f} s)", file=sys.stderr, flush=True)
