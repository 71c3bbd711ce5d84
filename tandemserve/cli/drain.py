"""When a worker that is being drained is empty. Pure: what the router says and the time go in."""

from collections.abc import Iterable

from tandemserve.admin_results import WorkerView
from tandemserve.cli.durations import brief
from tandemserve.errors import DeadlineExceeded, StaleIncarnation

# What a router had sent before it heard of the cordon arrives within this.
_SETTLE_S = 0.5


class DrainWatch:
    """Follows one life of one worker."""

    def __init__(self, worker: WorkerView, now: float, timeout_s: float) -> None:
        self._worker = worker
        self._began_at_s = now
        self._timeout_s = timeout_s
        self._empty_since_s: float | None = None
        # Its number of tasks, or why there is none to be known.
        self._told: int | str | None = None
        self.is_over = False
        # That life has ended, so that there is nothing to open or close any more.
        self.has_left = False

    @property
    def outcome(self) -> str:
        """What an operator may do once it is over."""
        name = self._worker.worker_id
        if self.has_left:
            return f"{name} has left the cluster; nothing is left to stop"
        return f"{name} is empty; stop it, or `tandem admin uncordon {name}`"

    def look(self, workers: Iterable[WorkerView], now: float) -> str:
        """A line about the progress, or "".

        Raises: DeadlineExceeded when it takes too long; StaleIncarnation when another life came.
        """
        name = self._worker.worker_id
        passed = brief(now - self._began_at_s)
        view = next((view for view in workers if view.worker_id == name), None)
        if view is None:
            self.is_over = self.has_left = True
            return f"{name} has left the cluster, {passed}"
        if view.incarnation != self._worker.incarnation:
            raise StaleIncarnation(
                f"{name} was started again meanwhile ({passed}), and its new life takes tasks; "
                "drain it again"
            )
        if view.state != "ready":
            return self._look_away(view, now)
        if view.admission == "open":
            raise DeadlineExceeded(
                f"{name} takes new tasks again: somebody uncordoned it; ask who, then drain again"
            )
        if view.num_tasks == 0:
            if self._empty_since_s is None:
                self._empty_since_s = now
            self.is_over = now - self._empty_since_s >= _SETTLE_S
        else:
            self._empty_since_s = None
        if not self.is_over and self._is_too_late(now):
            raise DeadlineExceeded(
                f"{name} still has {_tasks(view)} after {passed} and stays {view.admission}; wait "
                "longer, add --migrate, or `tandem admin requests --worker` and cancel"
            )
        if view.num_tasks == self._told:
            return ""
        self._told = view.num_tasks
        return f"{name}: {_tasks(view)} left, {view.num_running} running, {passed}"

    def _look_away(self, view: WorkerView, now: float) -> str:
        """It is not connected: nobody knows whether it is empty."""
        self._empty_since_s = None
        passed = brief(now - self._began_at_s)
        what = f"{view.worker_id} is {view.state}"
        what += f" ({view.problem})" if view.problem else ""
        if self._is_too_late(now):
            raise DeadlineExceeded(
                f"{what} after {passed}: its tasks go on elsewhere; stop its process, or wait "
                "longer (--drain-timeout) for its return"
            )
        if view.state == self._told:
            return ""
        self._told = view.state
        return f"{what}: its tasks go on elsewhere; waiting for its return or its end, {passed}"

    def _is_too_late(self, now: float) -> bool:
        return now - self._began_at_s >= self._timeout_s


def _tasks(view: WorkerView) -> str:
    return "1 task" if view.num_tasks == 1 else f"{view.num_tasks} tasks"
