"""May this worker be closed, and can it be told? What an operator asks is checked here."""

from router.fleet import MIXED, WorkerView
from router.state import RouterState
from router.worker_link import WorkerLink
from scheduling.errors import InvalidRequest, LastWorker, NoWorkerAvailable
from scheduling.messages import Admission


def admission_named(name: str) -> Admission:
    """What the operator wants. Raises: InvalidRequest."""
    try:
        return Admission(name)
    except ValueError:
        known = ", ".join(Admission)
        raise InvalidRequest("admission", f"{name!r} is unknown; use one of {known}") from None


def connected_view(state: RouterState, link: WorkerLink) -> WorkerView:
    """The worker as it reports itself. Raises: NoWorkerAvailable while it is not connected."""
    view = state.fleet.get(link.worker_id)
    if view is None or link.state != "ready":
        raise worker_away(link)
    return view


def worker_away(link: WorkerLink) -> NoWorkerAvailable:
    """The error for a worker that cannot be told anything now."""
    problem = f" ({link.problem})" if link.problem else ""
    return NoWorkerAvailable(
        f"worker {link.worker_id} is {link.state}{problem}: it gets no tasks, and cannot be told "
        "anything; try again when `tandem admin workers` shows it ready"
    )


def require_successor(state: RouterState, view: WorkerView) -> None:
    """Others must be left to take new tasks in its place. Raises: LastWorker.

    A mixed worker takes the place of any; a prefill and a decode worker together take its place.
    """
    role, compatibility = view.hello.role, view.hello.compatibility
    others = {
        other.hello.role
        for other in state.fleet
        if other is not view
        and other.load.takes_new_tasks
        and other.hello.compatibility == compatibility
    }
    if others & {role, MIXED} or (role == MIXED and others >= {"prefill", "decode"}):
        return
    raise LastWorker(
        f"{view.hello.worker_id} is the last open {role} worker of its kind: without it no "
        "request can be served; start or uncordon another one first, or insist with --force"
    )
