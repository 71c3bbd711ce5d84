"""`tandem admin workers`, `cordon`, `uncordon` and `drain`: who takes new tasks, who must not."""

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from tandemserve.admin_results import WorkerView
from tandemserve.cli.drain import DrainWatch
from tandemserve.cli.option_groups import AsJson, ConnectionOptions, expanded
from tandemserve.cli.output import note, print_json, print_table
from tandemserve.cli.watch import Watch, show_until_interrupted
from tandemserve.clock import monotonic
from tandemserve.errors import NoWorkerAvailable

if TYPE_CHECKING:
    from tandemserve.client import Client

_POLL_S = 0.25
# Timed passes from which on an error is shown: the model knows nothing at first, and until there
# are the 256 of which a worker tells, a few first guesses are the p90.
_FOR_MEDIAN, _FOR_P90 = 64, 256
# Workers that are named beside a policy.
_MAX_NAMED = 4

WorkerName = Annotated[str, typer.Argument(help="Id, or the beginning of one.")]
Force = Annotated[
    bool, typer.Option("--force", help="Even if nobody of its kind is left for new tasks.")
]


@expanded
def workers(connection: ConnectionOptions, watch: Watch = None, as_json: AsJson = False) -> None:
    """List the workers: what they take on, their tasks, their free KV blocks.

    Examples:

      tandem admin workers

      tandem admin workers --watch 1

      tandem admin workers --json | jq '.[] | select(.state != "ready")'
    """
    with connection.open() as client:

        def show() -> None:
            found = client.admin.workers()
            if as_json:
                print_json(found)
            else:
                _print_workers(found)

        show_until_interrupted(show, watch)


@expanded
def cordon(
    connection: ConnectionOptions,
    worker: WorkerName,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Let a worker take no new tasks, at any router; it keeps those that it has.

    It stays so until `uncordon` or the end of its process, whatever happens to connections.

    Examples:

      tandem admin cordon decode-1
    """
    with connection.open() as client:
        _print_admission(client.admin.cordon(worker, force=force), as_json)


@expanded
def uncordon(connection: ConnectionOptions, worker: WorkerName, as_json: AsJson = False) -> None:
    """Let a worker take new tasks again.

    Examples:

      tandem admin uncordon decode-1
    """
    with connection.open() as client:
        _print_admission(client.admin.uncordon(worker), as_json)


@expanded
def drain(
    connection: ConnectionOptions,
    worker: WorkerName,
    migrate: Annotated[
        bool, typer.Option("--migrate", help="Do not wait for its tasks: move them elsewhere.")
    ] = False,
    drain_timeout: Annotated[
        float, typer.Option(min=0.0, max=86_400.0, help="Give up waiting after seconds.")
    ] = 600.0,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Cordon a worker and wait until it is empty, so that it can be stopped without harm.

    With --migrate its tasks go on elsewhere: their KV is computed again, and clients see a pause
    and then the very next token. Exit code 1 when it is not empty in time (it stays cordoned), when
    it was started again meanwhile, and when it cannot be told: it is unknown, starting or lost.

    Examples:

      tandem admin drain decode-1

      tandem admin drain decode-1 --migrate --drain-timeout 30
    """
    with connection.open() as client:
        if migrate:
            view = client.admin.evacuate(worker, force=force)
        else:
            view = client.admin.cordon(worker, force=force)
        watch = DrainWatch(view, monotonic(), drain_timeout)
        _wait_empty(client, watch)
        if migrate and not watch.has_left:
            # Nothing is left to move: from here on it is cordoned like any other. One that goes
            # away at this moment is drained all the same.
            with suppress(NoWorkerAvailable):
                client.admin.cordon(view.worker_id, force=True)
    if as_json:
        print_json({"worker_id": view.worker_id, "empty": True})
    else:
        print(watch.outcome)


def _wait_empty(client: "Client", watch: DrainWatch) -> None:
    while True:
        line = watch.look(client.admin.workers(), monotonic())
        if line:
            note(line)
        if watch.is_over:
            return
        time.sleep(_POLL_S)


def _print_admission(view: WorkerView, as_json: bool) -> None:
    if as_json:
        print_json(view)
    else:
        tasks = "1 task" if view.num_tasks == 1 else f"{view.num_tasks} tasks"
        print(f"{view.worker_id} is {view.admission}; it has {tasks}")


def _print_workers(found: tuple[WorkerView, ...]) -> None:
    rows = [
        [
            view.worker_id,
            view.role,
            view.state if view.admission in ("", "open") else view.admission,
            view.num_running,
            view.num_tasks,
            f"{view.num_free_blocks}/{view.num_blocks}",
            # A dash where there is none.
            f"{view.num_free_swap_blocks}/{view.num_swap_blocks}" if view.num_swap_blocks else None,
            view.address,
        ]
        for view in found
    ]
    columns = ["worker", "role", "state", "runs", "tasks", "free KV", "free swap", "address"]
    print_table("Workers", columns, rows)
    _print_policies(found)
    divided = [[view.worker_id, view.num_ranks] for view in found if view.num_ranks > 1]
    if divided:
        print_table("Ranks", ["worker", "ranks"], divided)
    timed = [view for view in found if view.num_timed_passes]
    if timed:
        _print_pass_times(timed)
    for view in found:
        if view.problem:
            note(f"{view.worker_id}: {view.problem}")


def _print_policies(found: tuple[WorkerView, ...]) -> None:
    """By which each decides; one line where all were started alike."""
    ids_by_policy: dict[str, list[str]] = {}
    for view in found:
        if view.policy:
            ids_by_policy.setdefault(view.policy, []).append(view.worker_id)
    rows = [
        [policy, len(ids), ", ".join(ids[:_MAX_NAMED]) + (", ..." if ids[_MAX_NAMED:] else "")]
        for policy, ids in sorted(ids_by_policy.items())
    ]
    if rows:
        print_table("Policies", ["policy", "workers", "which"], rows)
    if len(rows) > 1:
        note("workers decide by several policies; give all processes the same")


def _print_pass_times(found: list[WorkerView]) -> None:
    columns = ["worker", "passes", "median error", "p90 error"]
    print_table("Models of pass times", columns, pass_time_rows(found))


def pass_time_rows(found: Sequence[WorkerView]) -> list[list[str | int | None]]:
    """By how much each worker's model of its passes is off; None before that means anything."""
    return [
        [
            view.worker_id,
            view.num_timed_passes,
            f"{view.pass_error_median:.1%}" if view.num_timed_passes >= _FOR_MEDIAN else None,
            f"{view.pass_error_p90:.1%}" if view.num_timed_passes >= _FOR_P90 else None,
        ]
        for view in found
    ]
