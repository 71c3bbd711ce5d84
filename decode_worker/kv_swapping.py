"""Which of a sequence's KV lies in host memory while it waits for blocks on the device.

Host memory is counted by a pool of its own. Full blocks are named there as they are on the device,
so that a block which several parked sequences share is copied and kept once, and one that another
sequence still holds on the device need not come back.
"""

from collections.abc import Iterable
from typing import Final

from decode_worker.generation_task import GenerationTask
from decode_worker.lending import Lending
from decode_worker.settings import DecodeSettings
from scheduling.batch_time import BatchShape, BatchTimeModel
from scheduling.batch_time_recovery import Preemption, Recovery
from scheduling.block_pool import BlockPool, num_blocks_for
from scheduling.ids import TaskId
from scheduling.parked_due import parked_due_at_s
from scheduling.prefix_chain import BlockHash
from scheduling.recovery_costs import AheadOfIt, RecoveryCosts, Victim
from scheduling.worker_events import KvSwapped, SwapIn, SwapOut

_NOTHING = BatchShape()


class KvSwapping:
    """The part of the decode core that counts host memory; it performs no copy."""

    def __init__(
        self,
        pool: BlockPool,
        lending: Lending,
        settings: DecodeSettings,
        block_bytes: int,
        model: BatchTimeModel | None,
    ) -> None:
        """`model` says what passes take; None where costs do not decide."""
        self._pool = pool
        self._lending = lending
        self._block_size = settings.block_size
        self._preemption = settings.preemption
        num_blocks = settings.num_swap_blocks
        is_on = num_blocks > 0 and settings.preemption is not Preemption.RECOMPUTE
        # None: there is no host memory for KV.
        self._space = BlockPool(num_blocks) if is_on else None
        # Size of the host memory; 0 where there is none.
        self.num_blocks: Final = num_blocks if is_on else 0
        # None: costs do not decide.
        self._costs: RecoveryCosts | None = None
        if is_on and settings.preemption is Preemption.CHEAPER:
            assert model is not None
            self._costs = RecoveryCosts(
                model, block_bytes, settings.swap_bytes_per_s, settings.max_num_batched_tokens
            )
        self._parked: dict[TaskId, GenerationTask] = {}
        self._is_yielding = settings.parked_yields
        # Of those that yield: newcomers that are due sooner go before them.
        self._due_at_s: dict[TaskId, float] = {}

    @property
    def num_parked(self) -> int:
        """Sequences whose KV lies in host memory."""
        return len(self._parked)

    @property
    def num_free_blocks(self) -> int:
        """What no parked sequence holds of it."""
        return 0 if self._space is None else self._space.num_free_blocks

    def due_in_s(self, now: float) -> float | None:
        """Newcomers that are due sooner go before all that are parked; None: nobody does, or
        nobody is."""
        return min(self._due_at_s.values()) - now if self._due_at_s else None

    def copied(self, copy: KvSwapped) -> None:
        """It took so long."""
        if self._costs is not None:
            self._costs.pace.observe(copy.num_blocks, copy.copy_s, is_out=copy.is_out)

    def take_out_one(
        self,
        tasks: Iterable[GenerationTask],
        now: float,
        num_prompt_tokens: int = 0,
        beside: BatchShape = _NOTHING,
    ) -> tuple[GenerationTask, SwapOut] | None:
        """Move the first, or with SWAP the first of them that has room; None if none is moved.

        What computing it again would cost depends on the prompt tokens that go first, and on what
        runs beside.
        """
        for task in tasks:
            swap_out = self._take_out(task, num_prompt_tokens, beside)
            if swap_out is not None:
                if self._is_yielding:
                    due_at_s = parked_due_at_s(now, task.needed_at_s(now))
                    self._due_at_s[task.task_id] = due_at_s
                return task, swap_out
            if self._preemption is not Preemption.SWAP:
                break
        return None

    def take_out(self, task: GenerationTask) -> SwapOut | None:
        """Let go of the task's blocks, at any cost; None, and it keeps them, without room."""
        return self._take_out(task, None, _NOTHING)

    def _take_out(
        self, task: GenerationTask, num_prompt_tokens: int | None, beside: BatchShape
    ) -> SwapOut | None:
        """Let go of the task's blocks; None, and it keeps them, without room or gain.

        `num_prompt_tokens` is None where nobody asks for the gain.
        """
        space = self._space
        # It asks for more room one token later than it can use it, hence the one more.
        num_at_most = num_blocks_for(task.num_tokens_at_most + 1, self._block_size)
        if space is None or num_at_most > self._pool.num_blocks:
            return None  # it could not come back here
        num_kv_blocks = self._num_kv_blocks(task)
        chain = self._chain(task)
        present = space.longest_prefix(chain)
        if self._costs is not None and num_prompt_tokens is not None:
            victim = Victim(task.num_tokens, num_kv_blocks, num_kv_blocks - len(present))
            num_parked = space.num_blocks - space.num_free_blocks
            ahead = AheadOfIt(num_parked, num_prompt_tokens, beside)
            if self._costs.choose(victim, ahead) is Recovery.RECOMPUTE:
                return None
        taken = space.allocate(task.task_id, num_kv_blocks - len(present), present)
        if taken is None:
            return None
        for block_id, block_hash in zip(space.blocks_of(task.task_id), chain, strict=False):
            space.register(block_id, block_hash)
        source = self._pool.blocks_of(task.task_id)[len(present) : num_kv_blocks]
        self._lending.release(task)
        self._parked[task.task_id] = task
        return SwapOut(source, taken)

    def bring_back(self, task: GenerationTask, num_blocks: int) -> SwapIn | None:
        """Give the task so many blocks again; None, and nothing has changed, without room."""
        assert self._space is not None
        found = self._pool.longest_prefix(self._chain(task))
        num_kv_blocks = self._num_kv_blocks(task)
        num_new = max(num_blocks, num_kv_blocks) - len(found)
        taken = self._pool.allocate(task.task_id, num_new, found)
        if taken is None:
            return None
        source = self._space.blocks_of(task.task_id)[len(found) : num_kv_blocks]
        self.forget(task)
        return SwapIn(source, taken[: len(source)])

    def forget(self, task: GenerationTask) -> None:
        """It needs nothing in host memory any more; harmless for one that never did."""
        if self._space is not None:
            self._space.release(task.task_id)
            self._space.take_prefix_changes()  # nobody is told of them
        self._parked.pop(task.task_id, None)
        self._due_at_s.pop(task.task_id, None)

    def distrust(self, task: GenerationTask) -> None:
        """What was computed from the task's KV went wrong: no other shall get a copy of it."""
        if self._space is not None:
            self._space.forget(task.chain)

    def check_invariants(self) -> None:
        """Raise AssertionError unless host memory holds what parked sequences need."""
        assert self._due_at_s.keys() <= self._parked.keys()
        assert not any(map(self._pool.num_blocks_of, self._parked))
        if self._space is None:
            assert not self._parked
            return
        self._space.check_invariants()
        held = {b for task_id in self._parked for b in self._space.blocks_of(task_id)}
        assert len(held) == self._space.num_blocks - self._space.num_free_blocks
        for task_id, task in self._parked.items():
            assert self._space.num_blocks_of(task_id) == self._num_kv_blocks(task)

    def _num_kv_blocks(self, task: GenerationTask) -> int:
        # The KV of the newest token does not exist yet.
        return num_blocks_for(task.num_tokens - 1, self._block_size)

    def _chain(self, task: GenerationTask) -> list[BlockHash]:
        return task.chain[: self._num_kv_blocks(task)]
