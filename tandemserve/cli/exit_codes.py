"""What the exit code of `tandem` says, and how an error becomes one."""

from enum import IntEnum

from tandemserve.cli.option_names import blames_an_option, in_options, with_timeout_option
from tandemserve.errors import ConnectionFailed, InvalidRequest, TandemError


class ExitCode(IntEnum):
    """Documented in `tandem --help`; scripts rely on it."""

    OK = 0
    # The cluster refused or failed the request.
    FAILED = 1
    # The command line is wrong, whether we or the router noticed. Typer's own code for it.
    USAGE = 2
    CANNOT_CONNECT = 3
    # Ctrl-C: 128 + SIGINT.
    INTERRUPTED = 130


def exit_code_of(error: TandemError, *, is_generation: bool = False) -> ExitCode:
    """CANNOT_CONNECT when nobody answers, USAGE for an option with a value that none may have."""
    if isinstance(error, ConnectionFailed):
        return ExitCode.CANNOT_CONNECT
    # Not its subclasses: another model, or another cluster, might take the value.
    is_refused = is_generation and error.code == InvalidRequest.code
    return ExitCode.USAGE if is_refused and blames_an_option(error.message) else ExitCode.FAILED


def error_line(error: TandemError, *, is_generation: bool = False) -> str:
    """One line for people: the code to search for, the message, and when to try again.

    What failed by a field that an option of the command sets is told of that option.
    """
    told = in_options(error.message) if is_generation else with_timeout_option(error.message)
    line = f"error [{error.code}]: {told}"
    if error.retry_after_s is not None:
        line += f" (try again in {error.retry_after_s:.3g} s)"
    return line
