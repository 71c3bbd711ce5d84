"""KV on its way between simulated pools: blocks pushed, awaited, and revoked."""

from collections.abc import Callable, Mapping
from functools import partial

from scheduling.ids import Incarnation, WorkerId
from scheduling.worker_events import (
    AwaitKv,
    ExpectKv,
    KvArrived,
    Push,
    PushFinished,
    QuarantineCleared,
    RevokeKv,
    WorkerEvent,
)
from simulator.simulated_worker import SimulatedWorker
from simulator.timing import Timing


class KvCopies:
    """Performs what cores want of transfers, each as late as `Timing` says."""

    def __init__(
        self,
        worker_by_id: Mapping[WorkerId, SimulatedWorker],
        timing: Timing,
        at: Callable[[float, Callable[[], None]], None],
        post: Callable[[SimulatedWorker, WorkerEvent], None],
    ) -> None:
        """`at` does something so many seconds later, `post` tells a worker's core."""
        self._worker_by_id = worker_by_id
        self._timing = timing
        self._at = at
        self._post = post
        # Memory outlives its process for whoever has it mapped: a copy there still succeeds.
        self._dead_lives: dict[tuple[WorkerId, Incarnation], SimulatedWorker] = {}

    def died(self, worker: SimulatedWorker) -> None:
        """Its process is gone."""
        self._dead_lives[worker.hello.worker_id, worker.hello.incarnation] = worker

    def push(self, worker: SimulatedWorker, push: Push) -> None:
        """Begin to copy blocks to where the decode worker wants them."""
        takes_s = self._timing.push_s(worker.hello, push)
        self._at(takes_s, partial(self._copy, worker, push, takes_s))

    def expect(self, worker: SimulatedWorker, expected: ExpectKv) -> None:
        """Let these blocks be filled, under these generations and no others."""
        pairs = zip(expected.block_ids, expected.generations, strict=True)
        worker.expected_generation.update(pairs)

    def await_all(self, worker: SimulatedWorker, awaited: AwaitKv) -> None:
        """Tell the worker once all blocks of a task have arrived."""
        worker.awaited[awaited.task_id] = awaited
        self._look(worker)

    def revoke(self, worker: SimulatedWorker, revoke: RevokeKv) -> None:
        """Let nothing more arrive in these blocks."""
        worker.awaited.pop(revoke.task_id, None)
        for block_id in revoke.block_ids:
            worker.expected_generation.pop(block_id, None)
        cleared = QuarantineCleared(revoke.task_id)
        self._at(self._timing.clear_s(), partial(self._post, worker, cleared))

    def _copy(self, worker: SimulatedWorker, push: Push, took_s: float) -> None:
        export = push.target.export
        target = self._worker_by_id.get(export.worker_id)
        if target is None or target.hello.incarnation != export.incarnation:
            is_mapped = self._timing.is_still_mapped()
            target = self._dead_lives[export.worker_id, export.incarnation] if is_mapped else None
        error = "peer gone" if target is None else self._receive(worker, push, target)
        num_blocks = 0 if error else len(push.block_ids)
        self._post(worker, PushFinished(push.task_id, num_blocks, num_blocks, took_s, error))

    def _receive(self, worker: SimulatedWorker, push: Push, target: SimulatedWorker) -> str | None:
        """What went wrong; the blocks before it are there."""
        error = None
        end = push.first_index + len(push.block_ids)
        for source, block, generation in zip(
            push.block_ids,
            push.target.block_ids[push.first_index : end],
            push.target.generations[push.first_index : end],
            strict=True,
        ):
            if target.expected_generation.get(block) != generation:
                error = "stale generation"
                break
            target.engine.receive(worker.engine, ((source, block),))
            target.arrived_generation[block] = generation
        self._look(target)
        return error

    def _look(self, worker: SimulatedWorker) -> None:
        if not worker.is_alive:
            return
        for task_id, awaited in list(worker.awaited.items()):
            pairs = zip(awaited.block_ids, awaited.generations, strict=True)
            if all(worker.arrived_generation.get(b) == g for b, g in pairs):
                del worker.awaited[task_id]
                self._at(0.0, partial(self._post, worker, KvArrived(task_id)))
