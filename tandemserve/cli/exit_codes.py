"""What the exit code of `tandem` says, and how an error becomes one."""

from enum import IntEnum

from tandemserve.errors import ConnectionFailed, TandemError


class ExitCode(IntEnum):
    """Documented in `tandem --help`; scripts rely on it."""

    OK = 0
    # The cluster refused or failed the request.
    FAILED = 1
    # The command line is wrong. Typer's own code for it.
    USAGE = 2
    CANNOT_CONNECT = 3
    # Ctrl-C: 128 + SIGINT.
    INTERRUPTED = 130


def exit_code_of(error: TandemError) -> ExitCode:
    """CANNOT_CONNECT when nobody answers, FAILED for every other error."""
    return ExitCode.CANNOT_CONNECT if isinstance(error, ConnectionFailed) else ExitCode.FAILED


def error_line(error: TandemError) -> str:
    """One line for people: the code to search for, the message, and when to try again."""
    line = f"error [{error.code}]: {error.message}"
    if error.retry_after_s is not None:
        line += f" (try again in {error.retry_after_s:.3g} s)"
    return line
