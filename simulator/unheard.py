"""How far answers have come by now, where their tokens are only counted and not told yet.

A router that is told of every token knows of those that are older than a report's way to it. This
says the same, so that whatever the router decides by the length of a running answer is the same.
"""

from decode_worker.core import DecodeCore
from router.sequence import Sequence
from scheduling.ids import TaskId
from scheduling.lifecycle import Phase
from scheduling.messages import TokensEmitted
from simulator.simulated_worker import SimulatedWorker


def num_unheard(sequence: Sequence, worker: SimulatedWorker | None, heard_at_s: float) -> int:
    """Tokens of an answer that were there at that instant, which is a moment ago, and of which no
    report has arrived."""
    if worker is None or sequence.phase is not Phase.DECODING:
        return 0
    assert isinstance(worker.core, DecodeCore)
    num_steps = _num_steps_by(worker, heard_at_s)
    untold_since = worker.core.batch.untold_since(sequence.task_id)
    num_unheard = 0 if untold_since is None else max(0, num_steps - untold_since)
    on_its_way = worker.told.get(sequence.task_id)
    if on_its_way is not None:
        # The newest of them is heard of with the report and not before.
        num_tokens, told_at = on_its_way
        num_unheard += max(0, num_tokens - 1 - max(0, told_at - 1 - num_steps))
    return num_unheard


def is_told(worker: SimulatedWorker, tokens: TokensEmitted) -> None:
    """A report with several tokens is on its way."""
    before, _ = worker.told.get(tokens.task_id, (0, 0))
    worker.told[tokens.task_id] = before + len(tokens.token_ids), worker.log.num_steps


def is_heard(worker: SimulatedWorker, task_id: TaskId, num_tokens: int) -> None:
    """So many of them have arrived."""
    on_its_way, told_at = worker.told.pop(task_id)
    if on_its_way > num_tokens:
        worker.told[task_id] = on_its_way - num_tokens, told_at


def _num_steps_by(worker: SimulatedWorker, at_s: float) -> int:
    known_at_s, num_steps = worker.num_steps_by
    if known_at_s != at_s:
        num_steps, run = worker.log.num_steps_by(at_s), worker.run
        if run is not None and run.num_counted and at_s > run.begin_s:
            num_steps += run.times.num_steps_begun(at_s - run.begin_s) - 1
        worker.num_steps_by = at_s, num_steps
    return num_steps
