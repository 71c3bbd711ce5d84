"""Several runs of one command side by side, each in a process of its own.

They know nothing of one another and come back in the order in which they were asked for, so what
is written is the same however many run at a time. The processes are forked: the load is read once.
"""

import io
import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from simulator.metrics.summary import Json
from simulator.runs import Note, Runner

T = TypeVar("T")
# Given a runner of its own, in its own process.
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
    _running: dict[Connection, tuple[int, BaseProcess]] = field(default_factory=dict)
    _outcome_by_number: dict[int, _Outcome] = field(default_factory=dict)
    # Of the line on a terminal.
    _width: int = 0

    def run(self) -> list[_Outcome]:
        """All of them."""
        waiting = deque(enumerate(self.jobs))
        while waiting or self._running:
            while waiting and len(self._running) < self.num_at_once:
                self._start(*waiting.popleft())
            for connection in wait(list(self._running)):
                assert isinstance(connection, Connection)
                self._hear(connection)
        return [self._outcome_by_number[number] for number in range(len(self.jobs))]

    def close(self) -> None:
        """End what still runs."""
        for _, process in self._running.values():
            # Not by SIGTERM: a handler that was inherited may ignore it, or come too early.
            process.kill()
        for connection, (_, process) in self._running.items():
            process.join()
            connection.close()
        self._running.clear()
        if self._width and self.runner.stream is not None:
            self.runner.stream.write("\n")

    def _start(self, number: int, job: Job[Any]) -> None:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe(duplex=False)
        inherited = [ours, *self._running]
        arguments = job, self.runner, theirs, inherited
        process = context.Process(target=_run, args=arguments, daemon=True)
        process.start()
        theirs.close()
        self._running[ours] = number, process

    def _hear(self, connection: Connection) -> None:
        number, process = self._running[connection]
        try:
            said = connection.recv()
        except (EOFError, OSError):  # before what it says, or in the middle of it
            process.join()
            raise RunDied(self._name(number), process.exitcode) from None
        if isinstance(said, str):
            self._show(number, said)
            return
        del self._running[connection]
        connection.close()
        process.join()
        if isinstance(said, _Defect):
            raise RunFailed(self._name(number), said.text)
        self._outcome_by_number[number] = said

    def _name(self, number: int) -> str:
        name = f"run {number + 1} of {len(self.jobs)}"
        return f"{name} ({self.names[number]})" if self.names else name

    def _show(self, number: int, text: str) -> None:
        """Of a terminal's one line, the run that was begun first has the use."""
        stream = self.runner.stream
        assert stream is not None
        if stream.isatty():
            text = text.strip()
            if not text or number != min(number for number, _ in self._running.values()):
                return
            line = f"{len(self._outcome_by_number)}/{len(self.jobs)} done; {text}"
            text, self._width = f"\r{line.ljust(self._width)}", len(line)
        stream.write(text)
        stream.flush()


def _run(
    job: Job[Any], runner: Runner, parent: Connection, inherited: Sequence[Connection]
) -> None:
    # Ctrl-C is for the parent, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Else nobody would notice that the parent is gone: we would be the ones that listen.
    for connection in inherited:
        connection.close()
    progress = None
    if runner.stream is not None:
        progress = _ToParent(parent, is_terminal=runner.stream.isatty())
    own = replace(runner, stream=None, progress=progress, wall_times=[], notes=[])
    # Nobody listens any more: the parent is gone.
    with suppress(BrokenPipeError):
        try:
            result = job(own)
        except Exception:  # what it is, the other process says
            parent.send(_Defect(traceback.format_exc()))
        else:
            parent.send(_Outcome(result, own.wall_times, own.notes))
