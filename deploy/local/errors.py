"""Why a local cluster does not start; each is one line that names the process and its log.

StartupError (runtime)
└── LaunchFailed
    ├── CannotServe          exit code 2
    ├── LogFolderUnusable
    ├── ProcessEnded
    ├── WorkerIncompatible
    └── StartTimedOut
"""

from pathlib import Path

from runtime.errors import StartupError


class LaunchFailed(StartupError):
    """The cluster cannot be started, or cannot go on."""


class CannotServe(LaunchFailed):
    """Workers would not serve this model with these settings on this machine."""

    exit_code = 2

    def __init__(self, problem: str, role: str | None = None) -> None:
        """`role`: whose settings it is about, where not everybody's."""
        super().__init__(f"{role} workers: {problem}" if role else problem)


class LogFolderUnusable(LaunchFailed):
    """The logs cannot be written where the user wants them."""

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(
            f"--log-dir {folder} {problem}; name a folder that this user can write to, or leave "
            "it away"
        )
        self.folder, self.problem = folder, problem


class ProcessEnded(LaunchFailed):
    """A process ended that should have gone on."""

    def __init__(self, name: str, ending: str, last_line: str, log_path: Path) -> None:
        reason = f": {last_line}" if last_line else ""
        super().__init__(f"{name} {ending}{reason}; its log is {log_path}")
        self.name, self.log_path = name, log_path


class WorkerIncompatible(LaunchFailed):
    """The router refuses to use a worker."""

    def __init__(self, name: str, problem: str, log_path: Path) -> None:
        super().__init__(f"{name} is incompatible: {problem}; its log is {log_path}")
        self.name, self.problem, self.log_path = name, problem, log_path


class StartTimedOut(LaunchFailed):
    """Some process did not become ready in time."""

    def __init__(self, waiting_for: str, timeout_s: float, log_dir: Path) -> None:
        super().__init__(
            f"not ready after {timeout_s:g} s: {waiting_for}; read the logs in {log_dir}, "
            "or raise --start-timeout-s"
        )
        self.waiting_for, self.log_dir = waiting_for, log_dir
