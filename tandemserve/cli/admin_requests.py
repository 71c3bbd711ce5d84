"""`tandem admin requests`, `request` and `cancel`: what runs, what happened to it, its end."""

import getpass
import shutil
import sys
from typing import Annotated

import typer

from tandemserve.admin_results import AnswerView, RequestFilter, RequestList, RequestView
from tandemserve.cli.durations import brief
from tandemserve.cli.option_groups import AsJson, ConnectionOptions, expanded
from tandemserve.cli.output import note, print_json, print_table
from tandemserve.cli.timeline_chart import chart
from tandemserve.cli.watch import Watch, show_until_interrupted
from tandemserve.options import RequestClassName

# Where nobody looks through a window, lines as on a usual one.
_WIDTH_WITHOUT_TERMINAL = 80


@expanded
def requests(
    connection: ConnectionOptions,
    running: Annotated[bool, typer.Option("--running", help="Only those that run.")] = False,
    ended: Annotated[bool, typer.Option("--ended", help="Only those that ended.")] = False,
    tenant: Annotated[str, typer.Option(help="Only of this tenant.")] = "",
    request_class: Annotated[
        RequestClassName | None, typer.Option("--class", help="Only of this class.")
    ] = None,
    phase: Annotated[str, typer.Option(help="Only in this phase, such as decoding.")] = "",
    worker: Annotated[str, typer.Option(help="Only on this worker.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most.")] = 50,
    watch: Watch = None,
    as_json: AsJson = False,
) -> None:
    """List requests that run, the oldest first, and those that ended, the latest first.

    Each router knows its own; with several, ask each by --target.

    Examples:

      tandem admin requests

      tandem admin requests --running --phase prompt_queued --limit 10

      tandem admin requests --worker decode-0 --watch 2

      tandem admin requests --ended --json | jq '.requests[] | select(.state == "failed")'
    """
    if running and ended:
        raise typer.BadParameter("--running and --ended leave nothing to show; give one of them")
    wanted = RequestFilter(
        state="running" if running else "ended" if ended else "",
        tenant=tenant,
        request_class=request_class or "",
        phase=phase,
        worker_id=worker,
    )
    with connection.open() as client:

        def show() -> None:
            found = client.admin.requests(wanted, max_requests=limit)
            if as_json:
                print_json(found)
            else:
                _print_requests(found)

        show_until_interrupted(show, watch)


@expanded
def request(
    connection: ConnectionOptions,
    request_id: Annotated[str, typer.Argument(help="Id, or the beginning of one.")],
    watch: Watch = None,
    as_json: AsJson = False,
) -> None:
    """Show everything that happened to one request: phases, workers, tries.

    Examples:

      tandem admin request 3f2a

      tandem admin request 3f2a --watch 1

      tandem admin request 3f2a --json | jq '.timelines[0].events[] | [.at_s, .phase]'
    """
    with connection.open() as client:

        def show() -> None:
            found = client.admin.request(request_id)
            if as_json:
                print_json(found)
                return
            for line in chart(found, _width()):
                print(line)

        show_until_interrupted(show, watch)


@expanded
def cancel(
    connection: ConnectionOptions,
    request_ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="Ids, or beginnings of ids.")
    ],
    reason: Annotated[str, typer.Option(help="Told to the callers.")] = "",
    operator: Annotated[
        str | None, typer.Option("--as", help="Who does it, told to the callers; else your login.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """End requests at once, on both workers; their callers get status CANCELLED and are told why.

    Nothing ends unless every id is known. A request that has ended already is left as it is.

    Examples:

      tandem admin cancel 3f2a 77c1

      tandem admin cancel 3f2a --reason "runaway job" --as ops
    """
    with connection.open() as client:
        outcomes = client.admin.cancel(
            *request_ids, operator=_login() if operator is None else operator, reason=reason
        )
    if as_json:
        print_json(outcomes)
        return
    for outcome in outcomes:
        before = "cancelled" if outcome.cancelled else f"had ended before ({outcome.state})"
        print(f"{outcome.request_id} {before}")


def _print_requests(found: RequestList) -> None:
    has_tenants = any(view.tenant != "default" for view in found.requests)
    columns = ["request", *(["tenant"] if has_tenants else []), "class", "phase", "age", "tokens"]
    rows = [
        [
            view.request_id if len(view.answers) == 1 else f"{view.request_id}/{answer.index}",
            *([view.tenant] if has_tenants else []),
            view.request_class,
            answer.phase,
            brief(view.age_s if view.ended_ago_s is None else view.age_s - view.ended_ago_s),
            f"{answer.num_output_tokens}/{view.max_tokens}",
            _where(view, answer),
        ]
        for view in found.requests
        for answer in view.answers
    ]
    title = f"Requests ({found.num_running} running, {found.num_ended} ended)"
    print_table(title, [*columns, "where, or waits for"], rows)
    if found.num_matching > len(found.requests):
        note(f"{found.num_matching - len(found.requests)} more match; raise --limit, or filter")


def _where(view: RequestView, answer: AnswerView) -> str:
    if view.error_code:
        return view.error_code
    if answer.waits_for:
        return answer.waits_for
    if answer.phase == "prefilling":
        return answer.prefill_worker
    return " > ".join(name for name in (answer.prefill_worker, answer.decode_worker) if name)


def _width() -> int:
    if not sys.stdout.isatty():
        return _WIDTH_WITHOUT_TERMINAL
    return shutil.get_terminal_size().columns


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container whose user has no name
        return ""
