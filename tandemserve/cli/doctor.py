"""`tandem doctor`: hand over to the doctor of a checkout, as `tandem up` does to the launcher."""

from typing import Annotated

import typer

from tandemserve.cli.cluster import become, module_command
from tandemserve.cli.exit_codes import ExitCode
from tandemserve.cli.option_groups import AsJson
from tandemserve.cli.output import note

_DOCTOR = "deploy.doctor"


def doctor(
    context: typer.Context,
    transports: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Only these, in this order of preference."),
    ] = None,
    kv_host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="For ways over the network, as kv_host of a worker."),
    ] = None,
    min_kv_bytes_per_s: Annotated[
        str | None,
        typer.Option(metavar="N", help="What is slower is not used, as with workers; such as 1e9."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure every way that KV can take between two workers of this machine.

    Says which one they would use, how fast it is, what is missing and what to do about it: GPUs
    and their peer access, /dev/shm, namespaces of containers, network. Works without a GPU too.

    It looks at this machine only. Towards another one a prefill worker measures the way when it
    connects: see kv_path_chosen in its log. Exit code 1 where KV has no way between some places,
    2 for wrong usage.

    Examples:

      tandem doctor

      tandem doctor --json

      tandem doctor --transports nixl,tcp --kv-host 10.1.0.7

      tandem doctor --min-kv-bytes-per-s 1e9
    """
    command = module_command(_DOCTOR, _DOCTOR)
    if command is None:
        note(
            "error: the doctor tries the servers' own code and runs from a checkout or the "
            'container image, not from the wheel; in a checkout run `pip install -e ".[worker]"` '
            "and repeat the command"
        )
        raise typer.Exit(ExitCode.FAILED)
    given = {
        "--transports": transports,
        "--kv-host": kv_host,
        "--min-kv-bytes-per-s": min_kv_bytes_per_s,
    }
    options = [f"{name}={value}" for name, value in given.items() if value is not None]
    # It tells itself what is wrong with an option, as `tandem up` and `tandem simulate` do.
    become([*command, *options, *(["--json"] if as_json else []), *context.args])
