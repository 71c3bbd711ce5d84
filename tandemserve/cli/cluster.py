"""`tandem up` and `tandem demo`: hand over to the servers of a checkout.

The wheel holds no servers. Where `deploy.local` can be imported, this process becomes
`python -m deploy.local`: so signals, exit code and terminal need no forwarding.
"""

import importlib.util
import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from tandemserve.cli.exit_codes import ExitCode
from tandemserve.cli.option_groups import AsJson
from tandemserve.cli.output import note

_LAUNCHER = "deploy.local"
# The wheel holds no policies; a test compares the names.
POLICY_NAMES = (
    *("default", "ecoserve", "cacheopt", "fcfs", "orca", "sarathi", "vllm", "tgi"),
    *("distserve", "fastserve", "accelgen"),
)
PASS_UNKNOWN_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True}


def up(
    context: typer.Context,
    model: Annotated[
        Path | None, typer.Option(help="Hugging Face folder; the bundled model by default.")
    ] = None,
    prefill: Annotated[
        int | None, typer.Option(min=0, help="Prefill workers; 1, or 0 beside --mixed.")
    ] = None,
    decode: Annotated[
        int | None, typer.Option(min=0, help="Decode workers; 2, or 0 beside --mixed.")
    ] = None,
    mixed: Annotated[
        int | None, typer.Option(min=0, help="Workers that do both; 0 by default.")
    ] = None,
    device: Annotated[Literal["cpu", "cuda"] | None, typer.Option(help="Where models run.")] = None,
    redis: Annotated[str | None, typer.Option(help="URL; starts its own by default.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the router.")] = 7700,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help=f"One of {', '.join(POLICY_NAMES)}.")
    ] = None,
    policy_set: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="Change the policy: victims=last-arrived."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    block_size: Annotated[int | None, typer.Option(min=1, help="Tokens per KV block.")] = None,
    kv_cache_mib: Annotated[int | None, typer.Option(min=1, help="KV pool per worker.")] = None,
    num_blocks: Annotated[
        int | None, typer.Option(min=1, help="KV blocks per worker, instead of --kv-cache-mib.")
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, help="Sequences in one iteration of a worker.")
    ] = None,
    max_model_len: Annotated[int | None, typer.Option(min=1, help="Longest context.")] = None,
    log_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the logs of all processes there.")
    ] = None,
    start_timeout_s: Annotated[
        float | None, typer.Option(help="How long loading may take; 600 by default.")
    ] = None,
    cluster_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Keeps clusters on one Redis apart.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Start a cluster on this machine and keep it running until Ctrl-C.

    Other options are passed on to the launcher: `python -m deploy.local up --help` lists
    them, --router.FIELD, --prefill-worker.FIELD and --decode-worker.FIELD among them; mixed
    workers take the settings of --decode-worker.

    Examples:

      tandem up

      tandem up --model ./Qwen2-0.5B --prefill 1 --decode 3 --port 7800

      tandem up --mixed 2

      tandem up --num-blocks 512 --log-dir logs --router.max-prompt-queue=100
    """
    options: dict[str, object] = {
        "--model": model,
        "--prefill": prefill,
        "--decode": decode,
        "--mixed": mixed,
        "--device": device,
        "--redis": redis,
        "--host": host,
        "--port": port,
        "--policy": policy,
        "--policy-set": ",".join(policy_set) if policy_set else None,
        "--dtype": dtype,
        "--block-size": block_size,
        "--kv-cache-mib": kv_cache_mib,
        "--num-blocks": num_blocks,
        "--max-num-seqs": max_num_seqs,
        "--max-model-len": max_model_len,
        "--log-dir": log_dir,
        "--start-timeout-s": start_timeout_s,
        "--cluster-name": cluster_name,
    }
    arguments = [
        part for name, value in options.items() if value is not None for part in (name, str(value))
    ]
    hand_over(["up", *arguments, *(["--json"] if as_json else []), *context.args])


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
