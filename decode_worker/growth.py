"""When a running sequence asks for more blocks, and what becomes of the blocks that it is promised.

A promise may come before the pool has room: where the ledger was away or forgot, others hold blocks
that it does not count. What was promised is booked, so it is not asked for a second time. It stays
owed, and is taken from the first blocks that others let go of.
"""

from collections.abc import Iterable

from decode_worker.generation_task import GenerationTask
from scheduling.block_pool import BlockPool, num_blocks_for
from scheduling.messages import GrowthNeeded
from scheduling.worker_events import ExtendSequence, SendReport, WorkerAction


class Growth:
    """The part of the decode core that makes block tables longer."""

    def __init__(self, pool: BlockPool, block_size: int, num_blocks_at_a_time: int) -> None:
        self._pool = pool
        self._block_size = block_size
        self._num_blocks_at_a_time = num_blocks_at_a_time

    def has_room(self, task: GenerationTask) -> bool:
        """The newest token has a place for its KV."""
        return task.num_tokens <= self._num_slots(task)

    def ask_ahead(self, task: GenerationTask) -> list[WorkerAction]:
        """Ask one block before the last one is full, so that the answer is there in time."""
        is_near = task.num_tokens + self._block_size > self._num_slots(task)
        return self.ask(task) if is_near else []

    def ask(self, task: GenerationTask) -> list[WorkerAction]:
        """Ask for what it may still need, unless an answer or a promised block is awaited."""
        if task.is_growing or task.is_stuck:
            return []
        held = self._pool.num_blocks_of(task.task_id)
        most = num_blocks_for(task.num_tokens_at_most, self._block_size)
        num_blocks = min(self._num_blocks_at_a_time, most - held)
        if num_blocks <= 0:
            return []
        task.is_growing = True
        return [SendReport(task.session_id, GrowthNeeded(task.task_id, num_blocks))]

    def promised(self, task: GenerationTask, num_blocks: int) -> list[WorkerAction]:
        """The ledger's answer; 0 blocks are a refusal."""
        task.is_growing = False
        task.is_denied = num_blocks == 0
        task.num_owed_blocks += num_blocks
        return self._take(task)

    def room_again(self, running: Iterable[GenerationTask]) -> list[WorkerAction]:
        """Blocks were let go of: they go to those that are owed some; who was refused may ask."""
        actions: list[WorkerAction] = []
        for task in running:
            task.is_denied = False
            actions += self._take(task)
        return actions

    def check_invariants(self, tasks: Iterable[GenerationTask]) -> None:
        """Raise AssertionError where blocks are free that somebody is owed."""
        num_owed = sum(task.num_owed_blocks for task in tasks)
        assert not num_owed or not self._pool.num_free_blocks

    def _take(self, task: GenerationTask) -> list[WorkerAction]:
        num_blocks = min(task.num_owed_blocks, self._pool.num_free_blocks)
        if not num_blocks:
            return []
        blocks = self._pool.allocate(task.task_id, num_blocks)
        assert blocks is not None
        task.num_owed_blocks -= num_blocks
        return [ExtendSequence(task.taken_slot, blocks)]

    def _num_slots(self, task: GenerationTask) -> int:
        return self._pool.num_blocks_of(task.task_id) * self._block_size
