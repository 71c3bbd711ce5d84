"""Events that a worker may look at in the middle of a run of steps: they change none of them."""

from decode_worker.core import DecodeCore
from scheduling.messages import GrantGrowth
from scheduling.worker_events import CommandArrived, WorkerEvent
from simulator.simulated_worker import SimulatedWorker


def ends_no_run(worker: SimulatedWorker, event: WorkerEvent) -> bool:
    """Blocks for an answer that advances, where there are enough free ones.

    Its table becomes longer. It asks again, or its new room ends, after the old one would have, and
    no run is longer than that. Only the router has to hear of the blocks, a step later.
    """
    if not isinstance(event, CommandArrived) or not isinstance(event.command, GrantGrowth):
        return False
    core, grant = worker.core, event.command
    return (
        isinstance(core, DecodeCore)
        and 0 < grant.num_blocks <= core.pool.num_free_blocks
        and not core.pool.num_lent_blocks
        and core.batch.untold_since(grant.task_id) is not None
    )
