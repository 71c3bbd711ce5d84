"""Several runs of one command side by side, in processes of their own.

They know nothing of one another and come back in the order in which they were asked for, so what
is written is the same however many run at a time. Each process gets the load once and takes one run
after another. They are spawned: a fork of a process with threads may hang on a lock that one holds.
"""

import io
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from simulator.metrics.summary import Json
from simulator.runs import Note, Runner

T = TypeVar("T")
# Given a runner of its own, in another process: like what it gives, it can be pickled.
Job = Callable[[Runner], T]


class RunDied(OSError):
    """A process of a run is gone without its result."""

    def __init__(self, name: str, exit_code: int | None) -> None:
        super().__init__(
            f"the process of {name} ended with exit code {exit_code} and no result; where "
            "memory is short, lower --jobs"
        )


class RunFailed(RuntimeError):
    """A defect in another process; the text is which run it was, and its traceback."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"{name} failed in a process of its own, which said:\n{text}")


@dataclass(frozen=True, slots=True)
class _Outcome:
    result: Any
    wall_times: Sequence[Mapping[str, Json]]
    notes: Sequence[Note]


@dataclass(frozen=True, slots=True)
class _Defect:
    text: str


class _ToParent(io.StringIO):
    """A stream whose text the other process writes."""

    def __init__(self, connection: Connection, *, is_terminal: bool) -> None:
        super().__init__()
        self._connection = connection
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        """As the real one is."""
        return self._is_terminal

    def write(self, text: str) -> int:
        """Hand it over."""
        self._connection.send(text)
        return len(text)


def run_side_by_side(
    jobs: Sequence[Job[T]], runner: Runner, num_at_once: int, names: Sequence[str] = ()
) -> list[T]:
    """What each job gives, in their order; notes and wall times go to `runner`.

    `names` says what each job runs, for errors; without it they have their numbers alone.
    Raises: RunDied, RunFailed; nobody is left behind then, nor after KeyboardInterrupt.
    """
    if min(num_at_once, len(jobs)) <= 1:
        return [job(runner) for job in jobs]
    side_by_side = _SideBySide(jobs, runner, num_at_once, names)
    try:
        outcomes = side_by_side.run()
    finally:
        side_by_side.close()
    for outcome in outcomes:
        runner.wall_times += outcome.wall_times
        for note in outcome.notes:
            runner.tell(note)
    return [outcome.result for outcome in outcomes]


@dataclass(slots=True)
class _SideBySide:
    jobs: Sequence[Job[Any]]
    runner: Runner
    num_at_once: int
    names: Sequence[str]
    _waiting: deque[tuple[int, Job[Any]]] = field(default_factory=deque)
    _process_by_connection: dict[Connection, BaseProcess] = field(default_factory=dict)
    # The numbers of the jobs that are under way.
    _running: dict[Connection, int] = field(default_factory=dict)
    _outcome_by_number: dict[int, _Outcome] = field(default_factory=dict)
    # Of the line on a terminal.
    _width: int = 0

    def run(self) -> list[_Outcome]:
        """All of them."""
        self._waiting = deque(enumerate(self.jobs))
        idle = [self._start() for _ in range(min(self.num_at_once, len(self.jobs)))]
        # Only now: whoever starts reads nothing yet, and a load is more than a pipe holds.
        for connection in idle:
            self._begin(connection, is_new=True)
        while self._running:
            for ready in wait(list(self._running)):
                assert isinstance(ready, Connection)
                self._hear(ready)
        return [self._outcome_by_number[number] for number in range(len(self.jobs))]

    def close(self) -> None:
        """End what still runs."""
        for process in self._process_by_connection.values():
            # Not by SIGTERM: who ignores it here ignores it there.
            process.kill()
        for connection, process in self._process_by_connection.items():
            process.join()
            connection.close()
        self._process_by_connection.clear()
        if self._width and self.runner.stream is not None:
            self.runner.stream.write("\n")

    def _start(self) -> Connection:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_run_what_comes, args=(theirs,), daemon=True)
        with _born_without_interrupts():
            process.start()
        self._process_by_connection[ours] = process
        theirs.close()
        return ours

    def _begin(self, connection: Connection, *, is_new: bool = False) -> None:
        """Give the process the next job, and before the first of them what all jobs share."""
        number, job = self._waiting.popleft()
        self._running[connection] = number
        stream = self.runner.stream
        is_terminal = None if stream is None else stream.isatty()
        shared = replace(self.runner, stream=None, progress=None, wall_times=[], notes=[])
        try:
            if is_new:
                connection.send((shared, is_terminal))
            connection.send(job)
        except OSError:  # nobody is there to read it
            raise self._death(connection) from None

    def _hear(self, connection: Connection) -> None:
        try:
            said = connection.recv()
        except (EOFError, OSError):  # before what it says, or in the middle of it
            raise self._death(connection) from None
        if isinstance(said, str):
            self._show(self._running[connection], said)
            return
        number = self._running.pop(connection)
        if isinstance(said, _Defect):
            raise RunFailed(self._name(number), said.text)
        self._outcome_by_number[number] = said
        if self._waiting:
            self._begin(connection)

    def _death(self, connection: Connection) -> RunDied:
        process = self._process_by_connection[connection]
        process.join()
        return RunDied(self._name(self._running[connection]), process.exitcode)

    def _name(self, number: int) -> str:
        name = f"run {number + 1} of {len(self.jobs)}"
        return f"{name} ({self.names[number]})" if self.names else name

    def _show(self, number: int, text: str) -> None:
        """Of a terminal's one line, the run that was begun first has the use."""
        stream = self.runner.stream
        assert stream is not None
        if stream.isatty():
            text = text.strip()
            if not text or number != min(self._running.values()):
                return
            line = f"{len(self._outcome_by_number)}/{len(self.jobs)} done; {text}"
            text, self._width = f"\r{line.ljust(self._width)}", len(line)
        stream.write(text)
        stream.flush()


@contextmanager
def _born_without_interrupts() -> Iterator[None]:
    """What is started in here is deaf to Ctrl-C, which is for us; ours comes at the end of it."""
    # It would let interrupts through once it has started its own process.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_what_comes(parent: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Until nobody gives a job, or takes what comes of it.
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        runner, is_terminal = parent.recv()
        if is_terminal is not None:
            runner.progress = _ToParent(parent, is_terminal=is_terminal)
        while True:
            job = parent.recv()
            own = replace(runner, wall_times=[], notes=[])
            try:
                # Sent in here: a result that cannot be pickled is a defect like any other.
                parent.send(_Outcome(job(own), own.wall_times, own.notes))
            except Exception:  # what it is, the other process says
                parent.send(_Defect(traceback.format_exc()))


def _end_with_parent() -> None:
    """A run that nobody waits for would go on for as long as it takes."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
