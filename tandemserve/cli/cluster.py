"""`tandem up` and `tandem demo`: hand over to the servers of a checkout.

The wheel holds no servers. Where `deploy.local` can be imported, this process becomes
`python -m deploy.local`: so signals, exit code and terminal need no forwarding.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import NoReturn

import typer

from tandemserve.cli.cluster_options import ClusterOptions
from tandemserve.cli.exit_codes import ExitCode
from tandemserve.cli.option_groups import AsJson, expanded
from tandemserve.cli.output import note

_LAUNCHER = "deploy.local"
PASS_UNKNOWN_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}


@expanded
def up(
    context: typer.Context,
    options: ClusterOptions,
    as_json: AsJson = False,
) -> None:
    """Start a cluster on this machine and keep it running until Ctrl-C.

    A router, workers and a Redis; when it says that it is ready, `tandem generate "..."` in another
    terminal asks it. What cannot work is refused at once, with what to do about it.

    Examples:

    On a laptop: a bundled toy model on one prefill and two decode workers.

      tandem up

    A model of one's own: a folder in the Hugging Face layout.

      tandem up --model ./Qwen2-0.5B --max-model-len 4096

    Other numbers of workers, or workers that do both halves.

      tandem up --prefill 2 --decode 2 --port 7800

      tandem up --mixed 1

    On a GPU.

      tandem up --model ./Qwen2-0.5B --device cuda

    KV in 8 bits, so that twice as much fits; on CPUs as well.

      tandem up --kv-dtype fp8_e4m3

    Each decode worker as two processes with half of every layer, on two GPUs if it is on any.

      tandem up --decode-worker.tensor-parallel-size=2

    KV over the network of torch instead of shared memory.

      tandem up --transports gloo,tcp

    Every setting of a process is an option too: --router.FIELD, --prefill-worker.FIELD and, for
    mixed workers as well, --decode-worker.FIELD. `python -m router --help` lists the fields, and so
    do `python -m prefill_worker --help` and `python -m decode_worker --help`.

      tandem up --num-blocks 512 --log-dir logs --router.max-prompt-queue=100

    Exit codes: 0 ended in order, 1 failed, 2 wrong usage, or a model that cannot be served so, 130
    interrupted during the start, or by a second Ctrl-C.
    """
    hand_over(["up", *options.arguments(), *(["--json"] if as_json else []), *context.args])


def demo(context: typer.Context, as_json: AsJson = False) -> None:
    """Start a small cluster, answer some prompts, show where the time went, stop it.

    Options are passed on to the launcher: `python -m deploy.local demo --help` lists them.

    Examples:

      tandem demo

      tandem demo --json
    """
    hand_over(["demo", *(["--json"] if as_json else []), *context.args])


def hand_over(arguments: list[str]) -> NoReturn:
    """Become the launcher. Raises: typer.Exit when this installation has none."""
    command = launcher_command()
    if command is None:
        note(
            "error: servers run from a checkout or the container image, not from the wheel; "
            'in a checkout run `pip install -e ".[worker,embedded]"` and repeat the command'
        )
        raise typer.Exit(ExitCode.FAILED)
    become([*command, *arguments])


def launcher_command() -> list[str] | None:
    """The command that runs the launcher found on this interpreter's path, or None."""
    return module_command(_LAUNCHER, _LAUNCHER)


def module_command(known_by: str, runs: str) -> list[str] | None:
    """The command that runs a module of the checkout where `known_by` is found, or None."""
    try:
        spec = importlib.util.find_spec(known_by)
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).resolve().parents[1]
    # `-m` would put the current folder first, where another `deploy` may lie.
    safe_path = [] if root == Path.cwd() else ["-P"]
    return [sys.executable, *safe_path, "-m", runs]


def become(command: list[str]) -> NoReturn:
    """This process is that command from here on."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], command)
