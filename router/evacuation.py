"""Empties a worker that an operator drains: its tasks are computed again elsewhere.

Every router does this for its own tasks, whenever the worker reports that it is being emptied.
"""

from router.events import PREFILL_LEG, Action
from router.leg import LegState
from router.scheduler import Scheduler
from router.state import RouterState
from router.worker_view import WorkerView
from scheduling.lifecycle import Change, Phase

# The KV is on its way out of the prefill worker: moving the task would only take longer.
_LEAVING_PREFILL = frozenset({Phase.TRANSFERRING, Phase.DECODING})


def evacuate(
    state: RouterState, scheduler: Scheduler, view: WorkerView, now: float
) -> list[Action]:
    """Begin another try for every task whose blocks lie on this worker; harmless when repeated."""
    worker_id = view.hello.worker_id
    actions: list[Action] = []
    for leg in state.legs.on_worker(worker_id):
        sequence = state.sequence_by_task.get(leg.task_id)
        if sequence is None or sequence.leg(leg.role) is not leg:
            continue
        if leg.state is LegState.RELEASING:
            continue  # its blocks are on their way back already
        if leg.role == PREFILL_LEG and sequence.phase in _LEAVING_PREFILL:
            continue
        why = f"an operator empties worker {worker_id}"
        actions += scheduler.try_again(sequence, Change.EVACUATED, why, now)
    return actions
