"""The command `tandem`: assembles the commands and turns every error into one line.

Commands import gRPC and rich when they run, so that `--help` and `version` are quick.
"""

import errno
import io
import logging
import os
import platform
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tandemserve.cli import cluster, simulator
from tandemserve.cli.admin import admin
from tandemserve.cli.chat import chat
from tandemserve.cli.doctor import doctor
from tandemserve.cli.exit_codes import ExitCode, error_line, exit_code_of
from tandemserve.cli.generate import generate
from tandemserve.cli.models import models, tokenize
from tandemserve.cli.option_groups import AsJson
from tandemserve.cli.output import note, print_json
from tandemserve.cli.streams import open_closed_streams
from tandemserve.errors import TandemError
from tandemserve.version import VERSION

_log = logging.getLogger("tandemserve")

# Commands whose options are fields of the request that fails.
_GENERATING = ("generate", "chat")
# What only a write can meet.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_EPILOG = """Exit codes: 0 done, 1 error from the cluster, 2 wrong usage, 3 cannot connect,
130 interrupted. Data goes to stdout, everything else to stderr."""


class _Tandem(TyperGroup):
    """Turns what commands raise into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TandemError as error:
            is_generation = ctx.invoked_subcommand in _GENERATING
            note(error_line(error, is_generation=is_generation))
            _log.debug("command_failed", exc_info=True)
            code = exit_code_of(error, is_generation=is_generation)
            raise typer.Exit(code) from None
        except typer.BadParameter as error:
            # What pydantic puts in front, inside Typer, says nothing to whoever typed the option.
            error.message = error.message.removeprefix("Value error, ")
            raise
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None


app = typer.Typer(
    cls=_Tandem,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(context_settings=cluster.PASS_UNKNOWN_OPTIONS)(cluster.up)
app.command(context_settings=cluster.PASS_UNKNOWN_OPTIONS)(cluster.demo)
app.command(context_settings=cluster.PASS_UNKNOWN_OPTIONS)(simulator.simulate)
app.command(context_settings=cluster.PASS_UNKNOWN_OPTIONS)(simulator.plan)
app.command()(simulator.replay)
app.command(context_settings=cluster.PASS_UNKNOWN_OPTIONS)(doctor)
app.command()(generate)
app.command()(chat)
app.command()(tokenize)
app.command()(models)
app.add_typer(admin, name="admin")


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"tandem {VERSION}")
        raise typer.Exit


@app.callback()
def tandem(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Debug log to stderr.")] = False,
    is_version_wanted: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_print_version, help="As `version`."),
    ] = False,
) -> None:
    """Serve large language models with prefill and decode on separate workers.

    Examples:

      tandem up

      tandem generate "Once upon a time"

      tandem admin status
    """
    if verbose:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the version of the client.

    Examples:

      tandem version

      tandem version --json
    """
    if as_json:
        print_json({"tandemserve": VERSION, "python": platform.python_version()})
    else:
        print(f"tandem {VERSION}")


def main() -> None:
    """Entry point of the console script; always ends in SystemExit."""
    open_closed_streams()
    # gRPC's own log would stand between our lines. A user's setting wins; gRPC is not loaded yet.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # noqa: TID251  it has no other switch
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that cannot show a character shows a substitute.
        sys.stdout.reconfigure(errors="replace")
    try:
        try:
            app()
        finally:
            # At exit nobody could tell what went wrong.
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        sys.exit(ExitCode.FAILED)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            _drop_output()
            what = "no space left" if error.errno == errno.ENOSPC else error.strerror
            note(f"error: cannot write the output: {what}; make room, or write it elsewhere")
            sys.exit(ExitCode.FAILED)
        _log.debug("internal_error", exc_info=True)
        note(f"internal error: {type(error).__name__}: {error}; run `tandem -v ...` and report it")
        sys.exit(ExitCode.FAILED)


def _drop_output() -> None:
    """What still lies in the buffer goes nowhere, at exit neither."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
