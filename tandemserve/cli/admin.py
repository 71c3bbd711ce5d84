"""`tandem admin`: the live state of the cluster, for operators; assembles its commands."""

from dataclasses import fields
from typing import Annotated

import typer

from tandemserve.admin_results import Holding, LengthCalibration, QueuedTask, WorkerReservations
from tandemserve.cli import admin_requests, admin_workers
from tandemserve.cli.durations import brief
from tandemserve.cli.option_groups import AsJson, ConnectionOptions, expanded
from tandemserve.cli.output import note, print_json, print_table

admin = typer.Typer(
    help="Look into a running cluster, and take requests and workers out of it.",
    no_args_is_help=True,
    add_completion=False,
)
admin.command()(admin_requests.requests)
admin.command()(admin_requests.request)
admin.command()(admin_requests.cancel)
admin.command()(admin_workers.workers)
admin.command()(admin_workers.cordon)
admin.command()(admin_workers.uncordon)
admin.command()(admin_workers.drain)


@admin.command()
@expanded
def status(connection: ConnectionOptions, as_json: AsJson = False) -> None:
    """Show what the router knows: workers, requests by phase, totals, predictions of lengths.

    Examples:

      tandem admin status

      tandem admin status --json | jq .num_decoding
    """
    with connection.open() as client:
        found = client.admin.status()
    if as_json:
        print_json(found)
        return
    names = [field.name for field in fields(found) if field.name != "length_calibration"]
    print_table("Status", ["", "value"], [[name, getattr(found, name)] for name in names])
    if found.length_calibration:
        _print_calibration(found.length_calibration)
    if found.num_workers_of_other_policy:
        note(
            f"workers that decide by another policy than {found.policy}: "
            f"{found.num_workers_of_other_policy}; `tandem admin workers` names them"
        )
    if not found.ledger_available:
        note("Redis cannot be reached: requests are admitted against the workers' own capacity")


@admin.command()
@expanded
def queues(
    connection: ConnectionOptions,
    max_tasks: Annotated[int, typer.Option(min=1, max=100_000, help="Per queue.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the waiting prompt and generation tasks in the order in which they would run.

    Prompts that none of the present workers could hold wait aside and are listed last.

    Examples:

      tandem admin queues

      tandem admin queues --max-tasks 10 --json
    """
    with connection.open() as client:
        found = client.admin.queues(max_tasks=max_tasks)
    if as_json:
        print_json(found)
        return
    queued = (
        ("Prompt tasks", found.num_prompt_tasks, found.prompt_tasks),
        ("Generation tasks", found.num_generation_tasks, found.generation_tasks),
        ("Prompts that fit no pair of workers", found.num_stranded_tasks, found.stranded_tasks),
    )
    for title, number, tasks in queued:
        if number or title != queued[-1][0]:
            _print_queue(f"{title} ({number})", tasks)


@admin.command()
@expanded
def reservations(
    connection: ConnectionOptions,
    max_holdings: Annotated[int, typer.Option(min=1, max=1_000_000, help="At most.")] = 1000,
    as_json: AsJson = False,
) -> None:
    """List the promised KV blocks by worker and by task.

    Examples:

      tandem admin reservations

      tandem admin reservations --json | jq '.holdings | length'
    """
    with connection.open() as client:
        found = client.admin.reservations(max_holdings=max_holdings)
    if as_json:
        print_json(found)
        return
    _print_all("Reserved blocks", WorkerReservations, found.workers, without=("incarnation",))
    _print_all("Holdings", Holding, found.holdings)
    if found.truncated:
        note("more holdings exist; raise --max-holdings")


def _print_calibration(found: tuple[LengthCalibration, ...]) -> None:
    rows = [
        [
            one.tenant if position else "(all)",
            one.num_answers,
            one.num_cut,
            f"{one.covered_share:.0%}",
            one.mean_absolute_error,
            f"{one.mean_relative_error:.0%}",
            f"{one.allocation_factor:.2f}",
        ]
        for position, one in enumerate(found)
    ]
    columns = ["tenant", "answers", "cut", "in bound", "tokens off", "share off", "allocated"]
    print_table("Predicted lengths of the latest answers", columns, rows)


def _print_queue(title: str, tasks: tuple[QueuedTask, ...]) -> None:
    has_tenants = any(task.tenant != "default" for task in tasks)
    columns = ["task", *(["tenant"] if has_tenants else []), "class", "waited", "due in"]
    rows = [
        [
            task.task_id,
            *([task.tenant] if has_tenants else []),
            task.request_class,
            brief(task.waited_s),
            brief(task.time_to_deadline_s),
            task.num_prompt_tokens,
            task.num_predicted_tokens,
            task.num_occupied_blocks,
        ]
        for task in tasks
    ]
    print_table(title, [*columns, "prompt", "answer", "blocks"], rows)
    # The tasks of one queue wait for one thing; only some may have been asked for it.
    for waits_for in dict.fromkeys(task.waits_for for task in tasks):
        print(f"  waits for {waits_for}")


def _print_all(
    title: str, result_class: type, results: tuple[object, ...], without: tuple[str, ...] = ()
) -> None:
    columns = [field.name for field in fields(result_class) if field.name not in without]
    print_table(title, columns, [[getattr(row, name) for name in columns] for row in results])
