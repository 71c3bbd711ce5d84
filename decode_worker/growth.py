"""When a running sequence asks for more blocks, and what becomes of the blocks that it is promised.

A promise may come before the pool has room: where the ledger was away or forgot, others hold blocks
that it does not count. What was promised is booked, so it is not asked for a second time. It stays
owed, and is taken from the first blocks that others let go of.
"""

from collections.abc import Iterable

from decode_worker.generation_task import GenerationTask, Stage
from decode_worker.lending import Lending
from decode_worker.settings import DecodeSettings
from scheduling.block_pool import BlockPool, num_blocks_for
from scheduling.ids import TaskId
from scheduling.messages import GrowthNeeded
from scheduling.worker_events import ExtendSequence, SendReport, WorkerAction


class Growth:
    """The part of the decode core that makes block tables longer."""

    def __init__(self, pool: BlockPool, settings: DecodeSettings, lending: Lending) -> None:
        self._pool = pool
        self._lending = lending
        self._block_size = settings.block_size
        # Free slots of an answer below which it asks for more.
        self._num_ahead = self._block_size if settings.is_growing_ahead else 0
        self._num_blocks_at_a_time = settings.growth_blocks
        self._num_blocks_if_roomy = max(settings.growth_blocks, settings.roomy_growth_blocks)
        # They run, and are owed blocks or were refused some.
        self._stuck: dict[TaskId, GenerationTask] = {}

    def looks_at(self, task: GenerationTask) -> int:
        """With so many tokens it should ask or has no room; with one more, where it should now."""
        held = self._pool.num_blocks_of(task.task_id)
        lent = self._lending.next_lent(task) if self._pool.num_lent_blocks else None
        num_slots = (held if lent is None else lent) * self._block_size
        if task.is_growing or task.is_stuck:
            return num_slots + 1
        if lent is None and held >= num_blocks_for(task.num_tokens_at_most, self._block_size):
            # It ends before its room does, but for an answer that is longer than it may be.
            return num_slots + 1
        return max(num_slots - self._num_ahead + 1, task.num_tokens + 1)

    def has_room(self, task: GenerationTask, num_more: int = 0) -> bool:
        """The newest token has a place for its KV, and so have `num_more` after it."""
        return task.num_tokens + num_more <= self._num_slots(task)

    def ask_ahead(self, task: GenerationTask) -> list[WorkerAction]:
        """Ask one block before the last one is full, so that the answer is there in time; or, by
        the settings, only once it is."""
        is_near = task.num_tokens + self._num_ahead > self._num_slots(task)
        return self.ask(task) if is_near else []

    def ask(self, task: GenerationTask) -> list[WorkerAction]:
        """Ask for what it may still need, unless an answer or a promised block is awaited."""
        if task.is_growing or task.is_stuck:
            return []
        held = self._num_held(task)
        most = num_blocks_for(task.num_tokens_at_most, self._block_size)
        is_lent = self._lending.next_lent(task) is not None
        # In the place of one that its guest still needs; where there is more room behind.
        num_blocks = 1 if is_lent else min(self._num_blocks_at_once, most - held)
        if num_blocks <= 0:
            return []
        task.is_growing = True
        return [SendReport(task.session_id, GrowthNeeded(task.task_id, num_blocks))]

    @property
    def _num_blocks_at_once(self) -> int:
        """Every question costs worker, router and ledger the same, however much it asks for."""
        is_roomy = 4 * self._pool.num_free_blocks >= 3 * self._pool.num_blocks
        return self._num_blocks_if_roomy if is_roomy else self._num_blocks_at_a_time

    def promised(self, task: GenerationTask, num_blocks: int) -> list[WorkerAction]:
        """The ledger's answer; 0 blocks are a refusal."""
        task.is_growing = False
        task.is_denied = num_blocks == 0
        if task.stage is Stage.PARKED:
            task.num_blocks += num_blocks  # it comes back with them
        else:
            task.num_owed_blocks += num_blocks
        actions = self._take(task)
        if task.is_stuck:
            self._stuck[task.task_id] = task
        return actions

    def room_again(self) -> tuple[list[WorkerAction], list[GenerationTask]]:
        """Blocks were let go of: they go to those that are owed some; who was refused may ask.

        The second are those of whom something has changed.
        """
        for task in self._stuck.values():
            task.is_denied = False
        return self.hand_out()

    def hand_out(self) -> tuple[list[WorkerAction], list[GenerationTask]]:
        """The same, but the ledger has no more room than before: who was refused waits on."""
        actions: list[WorkerAction] = []
        changed = sorted(self._stuck.values(), key=lambda task: task.seat)
        for task in changed:
            actions += self._take(task)
            if not task.is_stuck:
                del self._stuck[task.task_id]
        return actions, changed

    def forget(self, task: GenerationTask) -> None:
        """It does not run any more: what it was owed goes with it, and no answer is awaited."""
        self._stuck.pop(task.task_id, None)
        task.is_growing, task.is_denied, task.num_owed_blocks = False, False, 0

    def take_along(self, task: GenerationTask) -> int:
        """It leaves the device and means to come back: with the blocks that it is owed, so many.

        An answer that it awaits still counts.
        """
        num_owed, task.num_owed_blocks = task.num_owed_blocks, 0
        if not task.is_denied:
            self._stuck.pop(task.task_id, None)
        return num_owed

    def check_invariants(self, tasks: Iterable[GenerationTask]) -> None:
        """Raise AssertionError where blocks are free that somebody is owed."""
        tasks = list(tasks)
        assert self._stuck.keys() == {task.task_id for task in tasks if task.is_stuck}
        num_owed = sum(task.num_owed_blocks for task in tasks)
        assert not num_owed or not self._pool.num_free_blocks

    def _take(self, task: GenerationTask) -> list[WorkerAction]:
        actions: list[WorkerAction] = []
        while task.num_owed_blocks and self._pool.num_free_blocks:
            lent = self._lending.next_lent(task)
            if lent is None or task.num_tokens + self._block_size <= lent * self._block_size:
                break
            task.num_owed_blocks -= 1
            actions += self._lending.replace(task, lent)
        num_blocks = min(task.num_owed_blocks, self._pool.num_free_blocks)
        if not num_blocks:
            return actions
        blocks = self._pool.allocate(task.task_id, num_blocks)
        assert blocks is not None
        task.num_owed_blocks -= num_blocks
        if task.slot is None:
            return actions  # it pauses, and is loaded again with all its blocks
        return [*actions, ExtendSequence(task.slot, blocks)]

    def _num_slots(self, task: GenerationTask) -> int:
        """Tokens up to where its blocks end, or a guest still writes."""
        lent = self._lending.next_lent(task) if self._pool.num_lent_blocks else None
        held = self._num_held(task) if lent is None else lent
        return held * self._block_size

    def _num_held(self, task: GenerationTask) -> int:
        """Or, of one that lies in host memory, will hold when it comes back."""
        if task.stage is Stage.PARKED:
            return task.num_blocks
        return self._pool.num_blocks_of(task.task_id)
