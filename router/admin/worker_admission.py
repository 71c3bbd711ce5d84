"""May this worker be closed, and can it be told? What an operator asks is checked here."""

from router.state import RouterState
from router.worker_link import WorkerLink
from router.worker_view import MIXED, WorkerView
from scheduling.errors import InvalidRequest, LastWorker, NoWorkerAvailable
from scheduling.messages import Admission

_WHEN_READY = "try again when `tandem admin workers` shows it ready"
# By the state of a link: what has become of the tasks, and what to do.
_AWAY = {
    "connecting": ("it has no tasks from here yet", _WHEN_READY),
    "lost": ("its tasks go on elsewhere", f"stop its process if there is one, or {_WHEN_READY}"),
    "incompatible": (
        "it gets no tasks from here",
        "stop it, or start it again as the problem says",
    ),
    # Just now, and its view is on the way.
    "ready": ("it has only just connected", _WHEN_READY),
}


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
        raise worker_away(link.worker_id, link.state, link.problem)
    return view


def worker_away(worker_id: str, state: str, problem: str) -> NoWorkerAvailable:
    """The error for a worker that cannot be told anything now: what is the case, what to do."""
    what, way_out = _AWAY[state]
    why = f" ({problem})" if problem else ""
    message = (
        f"worker {worker_id} is {state}{why}: {what}, and it cannot be told anything; {way_out}"
    )
    return NoWorkerAvailable(message)


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
