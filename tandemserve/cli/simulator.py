"""`tandem simulate`, `plan` and `replay`: hand over to the simulator of a checkout.

The wheel holds no simulator. Where one can be imported, this process becomes
`python -m simulator`, as `tandem up` becomes the launcher.
"""

from pathlib import Path
from typing import Annotated

import typer

from tandemserve.cli.cluster import become, module_command
from tandemserve.cli.cluster_options import POLICY_NAMES
from tandemserve.cli.exit_codes import ExitCode
from tandemserve.cli.option_groups import AsJson
from tandemserve.cli.output import note

# Also there in a foreign package of that name? Then it is not ours.
_OURS = "simulator.core_cluster"

Trace = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Requests: when, how long; a public sample by default."),
]
Policies = Annotated[
    str | None,
    typer.Option(
        "--policy", metavar="A,B", help=f"Some of {', '.join(POLICY_NAMES)}, oracle (foresight)."
    ),
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Change every policy: victims=last-arrived."),
]
MaxRequests = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Only the first so many requests.")
]
Hardware = Annotated[
    str | None,
    typer.Option(metavar="NAME|FILE", help="What a worker is: h100 (default), h200, a100, cpu."),
]
Slo = Annotated[
    str | None,
    typer.Option(metavar="GOALS", help="ttft=1s,tpot=100ms; published ones by default."),
]
Seed = Annotated[int | None, typer.Option(help="Of everything that is drawn; 0 by default.")]
Json = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write all figures there.")
]
Report = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Write plots, and the page of a run, there.")
]


def simulate(
    context: typer.Context,
    trace: Trace = None,
    policy: Policies = None,
    changes: Changes = None,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="SPEC", help="8, mixed:8 or prefill:3,decode:5; 1 by default."),
    ] = None,
    hardware: Hardware = None,
    slo: Slo = None,
    seed: Seed = None,
    max_requests: MaxRequests = None,
    rate: Annotated[
        str | None,
        typer.Option(metavar="RPS", help="Requests per second; 2,4,8 for a curve."),
    ] = None,
    rate_scale: Annotated[
        str | None, typer.Option(metavar="X", help="So many times faster; 1,2,4 for a curve.")
    ] = None,
    is_goodput_wanted: Annotated[
        bool, typer.Option("--search-goodput", help="Find the highest rate that serves.")
    ] = False,
    json_file: Json = None,
    report: Report = None,
) -> None:
    """Run recorded requests through the product's own scheduling, in virtual time.

    Other options are passed on to the simulator: `python -m simulator simulate --help` lists
    them.

    Examples:

      tandem simulate --cluster 4

      tandem simulate --trace requests.csv --hardware h100 --cluster 4

      tandem simulate --trace requests.csv --policy default,fcfs --rate-scale 1,2,4 --report out

      tandem simulate --trace requests.csv --slo ttft=500ms,tpot=50ms --search-goodput

      tandem simulate --policy default,fcfs --set victims=last-arrived
    """
    options = _shared(trace, policy, hardware, slo, seed, json_file, report)
    options |= {"--max-requests": max_requests}
    options |= {"--cluster": cluster, "--rate": rate, "--rate-scale": rate_scale}
    flags = ["--search-goodput"] if is_goodput_wanted else []
    _hand_over("simulate", options, [*flags, *_each("--set", changes), *context.args])


def plan(
    context: typer.Context,
    trace: Trace = None,
    policy: Policies = None,
    changes: Changes = None,
    hardware: Hardware = None,
    slo: Slo = None,
    seed: Seed = None,
    max_requests: MaxRequests = None,
    target_rps: Annotated[
        float | None, typer.Option(metavar="RPS", help="Requests per second to serve.")
    ] = None,
    max_workers: Annotated[
        int | None, typer.Option(min=1, help="The largest cluster looked at; 64 by default.")
    ] = None,
    json_file: Json = None,
    report: Report = None,
) -> None:
    """Find the smallest cluster, and its roles, that serve recorded requests in time.

    Exit code 1 where no cluster does.

    Other options are passed on to the simulator: `python -m simulator plan --help` lists them.

    Examples:

      tandem plan --target-rps 12

      tandem plan --trace requests.csv --hardware h100 --slo ttft=500ms,tpot=50ms

      tandem plan --trace requests.csv --target-rps 40 --policy default,distserve --json plan.json
    """
    options = _shared(trace, policy, hardware, slo, seed, json_file, report)
    options |= {"--max-requests": max_requests}
    options |= {"--target-rps": target_rps, "--max-workers": max_workers}
    _hand_over("plan", options, [*_each("--set", changes), *context.args])


def replay(
    recording: Annotated[Path, typer.Argument(metavar="FILE", help="What a router wrote.")],
    show: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Print this event and what came of it.")
    ] = None,
    is_checked: Annotated[
        bool, typer.Option("--check", help="Check all that the core knows after each event.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Ask whether this version decides what a recorded router decided, event by event.

    A router writes a recording where its setting record_dir names a folder. It holds prompts
    and answers as token ids.

    Examples:

      tandem up --router.record_dir recordings

      tandem replay recordings/router-0-1795304202327826.jsonl.gz

      tandem replay recordings/router-0-1795304202327826.jsonl.gz --show 812
    """
    flags = [name for name, is_set in (("--check", is_checked), ("--json", as_json)) if is_set]
    _hand_over("replay", {"--show": show}, [*flags, "--", str(recording)])


def _shared(
    trace: Path | None,
    policy: str | None,
    hardware: str | None,
    slo: str | None,
    seed: int | None,
    json_file: Path | None,
    report: Path | None,
) -> dict[str, object]:
    return {
        "--trace": trace,
        "--policy": policy,
        "--hardware": hardware,
        "--slo": slo,
        "--seed": seed,
        "--json": json_file,
        "--report": report,
    }


def _each(option: str, values: list[str] | None) -> list[str]:
    """The option as often as it was given."""
    return [f"{option}={value}" for value in values or ()]


def _hand_over(name: str, options: dict[str, object], rest: list[str]) -> None:
    """Become the simulator. Raises: typer.Exit when this installation has none."""
    command = module_command(_OURS, "simulator")
    if command is None:
        note(
            "error: the simulator runs from a checkout, not from the wheel; in a checkout run "
            '`pip install -e ".[simulate]"` and repeat the command'
        )
        raise typer.Exit(ExitCode.FAILED)
    given = (f"{key}={value}" for key, value in options.items() if value is not None)
    become([*command, name, *given, *rest])
