"""One child process through all its lives: start, watch, end. Its output goes to a log file.

On Linux the kernel sends SIGTERM to the child when this process is gone, however it went. It may
send it more than once, since the child passes from one dying thread of ours to the next; a process
that takes a second SIGTERM for impatience then ends without cleaning up.
"""

import asyncio
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from deploy.local.errors import ProcessEnded
from deploy.local.loading import Loading, last_loading
from deploy.local.log_tail import last_meaningful_line
from runtime.bound_child import bound_to_this_process
from runtime.clock import MonotonicClock

_POLL_S = 0.02


class ChildProcess:
    """A command that can be run again after it has ended."""

    def __init__(
        self, name: str, command: Sequence[str], environ: Mapping[str, str], log_path: Path
    ) -> None:
        self.name = name
        self.log_path = log_path
        self._command = tuple(command)
        self._environ = dict(environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_offset = 0
        self._was_asked_to_end = False

    @property
    def pid(self) -> int:
        """Of the current or the last life. Raises: RuntimeError before the first."""
        return self._started().pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def loading(self) -> Loading | None:
        """What its log says of its start; None where that says nothing."""
        return last_loading(self.log_path, self._log_offset)

    @property
    def ended_well(self) -> bool:
        """True after exit code 0, or when SIGTERM came before the process could handle it."""
        status = self._started().poll()
        return status == 0 or (status == -signal.SIGTERM and self._was_asked_to_end)

    def start(self) -> None:
        """Begin a life; the log goes on in the same file.

        The death signal belongs to the thread that starts the child, so only the main thread,
        which lives as long as the process, asks for it.
        """
        if self.is_running:
            raise RuntimeError(f"{self.name} runs already; stop it first")
        command = bound_to_this_process(self._command)
        self._was_asked_to_end = False
        with self.log_path.open("ab") as log:
            self._log_offset = log.tell()
            self._process = subprocess.Popen(
                command,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Ctrl-C on the terminal is for the launcher, which stops the rest in order.
                start_new_session=True,
            )

    def terminate(self) -> None:
        """Ask for an orderly end; harmless when it has ended."""
        self._was_asked_to_end = True
        if self.is_running:
            self._started().terminate()

    def kill(self) -> None:
        """End it at once, without cleaning up, and wait until it is gone."""
        process = self._started()
        if process.poll() is None:
            process.kill()
        # SIGKILL cannot be refused; the bound is for a process stuck inside the kernel.
        process.wait(timeout=10.0)

    def restart(self) -> None:
        """Kill it if it runs, and begin another life; the caller waits until that is ready."""
        self.kill()
        self.start()

    async def wait_ended(self, timeout_s: float | None = None) -> bool:
        """Return True when it has ended, False when the time was over before."""
        clock = MonotonicClock()
        deadline_at_s = None if timeout_s is None else clock.now() + timeout_s
        while self.is_running:
            if deadline_at_s is not None and clock.now() >= deadline_at_s:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    def ending(self) -> ProcessEnded:
        """How and why the last life ended, ready to be raised."""
        status = self._started().poll() or 0
        how = f"ended with status {status}"
        if status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        # Who is killed writes nothing about it: the last line would be about something else.
        is_killed = status == -signal.SIGKILL
        reason = "" if is_killed else last_meaningful_line(self.log_path, self._log_offset)
        return ProcessEnded(self.name, how, reason, self.log_path)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self._process
