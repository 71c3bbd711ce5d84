"""`tandem admin`: the live state of the cluster, for operators."""

from dataclasses import fields
from typing import Annotated

import typer

from tandemserve.admin_results import Holding, QueuedTask, WorkerReservations, WorkerView
from tandemserve.cli.option_groups import AsJson, ConnectionOptions, expanded
from tandemserve.cli.output import note, print_json, print_table

admin = typer.Typer(help="Look into a running cluster.", no_args_is_help=True, add_completion=False)


@admin.command()
@expanded
def status(connection: ConnectionOptions, as_json: AsJson = False) -> None:
    """Show what the router knows: workers, requests by phase, totals.

    Examples:

      tandem admin status

      tandem admin status --json | jq .num_decoding
    """
    with connection.open() as client:
        found = client.admin.status()
    if as_json:
        print_json(found)
        return
    rows = [[field.name, getattr(found, field.name)] for field in fields(found)]
    print_table("Status", ["", "value"], rows)
    if not found.ledger_available:
        note("Redis cannot be reached: requests are admitted against the workers' own capacity")


@admin.command()
@expanded
def workers(connection: ConnectionOptions, as_json: AsJson = False) -> None:
    """List the workers with their free KV blocks.

    Examples:

      tandem admin workers

      tandem admin workers --json | jq '.[] | select(.state != "ready")'
    """
    with connection.open() as client:
        found = client.admin.workers()
    if as_json:
        print_json(found)
    else:
        # A terminal has no room for them: --json has.
        _print_all("Workers", WorkerView, found, without=("incarnation", "compatibility"))


@admin.command()
@expanded
def queues(
    connection: ConnectionOptions,
    max_tasks: Annotated[int, typer.Option(min=1, max=100_000, help="Per queue.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List the waiting prompt and generation tasks in the order in which they would run.

    Examples:

      tandem admin queues

      tandem admin queues --max-tasks 10 --json
    """
    with connection.open() as client:
        found = client.admin.queues(max_tasks=max_tasks)
    if as_json:
        print_json(found)
        return
    _print_all(f"Prompt tasks ({found.num_prompt_tasks})", QueuedTask, found.prompt_tasks)
    title = f"Generation tasks ({found.num_generation_tasks})"
    _print_all(title, QueuedTask, found.generation_tasks)


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


def _print_all(
    title: str, result_class: type, results: tuple[object, ...], without: tuple[str, ...] = ()
) -> None:
    columns = [field.name for field in fields(result_class) if field.name not in without]
    print_table(title, columns, [[getattr(row, name) for name in columns] for row in results])
