"""Which blocks of a prompt are pushed when: the part of the prefill core that knows targets.

Blocks are final at the end of a pass. What then goes at once is the setting's; what is worth
pushing beside the next pass is `scheduling/push_pacing.py`'s, once the path and passes are known.
"""

from dataclasses import replace

from prefill_worker.prompt_task import PromptTask
from scheduling.batch_time_online import OnlineBatchTime
from scheduling.block_pool import BlockPool
from scheduling.push_pacing import (
    KvOverlap,
    PassAhead,
    PushPath,
    RestOfPrompt,
    is_push_due,
    passes_of,
    tokens_before_cut,
)
from scheduling.push_path import MeasuredPush, PushPaths
from scheduling.step import ScheduledChunk
from scheduling.value import value
from scheduling.worker_events import Push, PushFinished, WorkerAction


@value
class BesidePass:
    """The pass that is about to begin."""

    # What of the prompt it computes.
    chunk: ScheduledChunk
    # With all that it holds.
    pass_s: float
    # Tokens that a later pass holds at most.
    max_num_tokens: int
    now: float


class Pushing:
    """Owned by the core."""

    def __init__(
        self,
        pool: BlockPool,
        block_size: int,
        overlap: KvOverlap,
        *,
        are_cores_shared: bool,
        max_push_s: float,
    ) -> None:
        self._pool = pool
        self._max_push_s = max_push_s
        self._block_size = block_size
        self._overlap = overlap
        self._paths = PushPaths(are_cores_shared=are_cores_shared)

    def at_once(self, task: PromptTask) -> list[WorkerAction]:
        """What is pushed the moment it is final, or its target known, whatever else happens."""
        if task.is_computed or self._overlap is KvOverlap.CHUNK:
            return self._push(task)
        return []

    def beside(
        self, task: PromptTask, coming: BesidePass, model: OnlineBatchTime
    ) -> list[WorkerAction]:
        """What is pushed while the next pass runs; asked by `AUTO` alone."""
        if not self._num_ready(task):
            return []
        path = self._path(task)
        if path is None or not model.num_observed:
            # That is how it becomes known.
            return self._push(task, coming.now)
        rest = self._rest(task, coming.now)
        is_long = path.seconds(rest.num_ready_blocks) >= self._max_push_s
        if is_long and rest.busy_s <= self._max_push_s:
            # Whatever is gained: together with what comes later it might never be done in time.
            return self._push(task, coming.now)
        num_next = coming.chunk.num_tokens
        first, *others = passes_of(model, rest, num_next, coming.max_num_tokens)
        passes = (PassAhead(coming.pass_s, first.num_blocks), *others)
        return self._push(task, coming.now) if is_push_due(path, rest.state(passes)) else []

    def cut(
        self, task: PromptTask, chunk: ScheduledChunk, model: OnlineBatchTime, now: float
    ) -> ScheduledChunk:
        """The end of a prompt, or less of it where the rest is better computed in another pass.

        Asked by `AUTO` alone.
        """
        path = self._path(task)
        if path is None or not chunk.samples or not model.num_observed:
            return chunk
        num_tokens = tokens_before_cut(path, model, self._rest(task, now))
        if num_tokens >= chunk.num_tokens:
            return chunk
        return replace(chunk, num_tokens=num_tokens, samples=False)

    def ended(self, task: PromptTask, event: PushFinished) -> None:
        """A push of this task is over."""
        task.num_pushes_in_flight -= 1
        assert task.target is not None, "nothing is pushed without a target"
        measured = MeasuredPush(event.num_blocks, event.copy_s)
        worker_id = task.target.export.worker_id
        self._paths.ended(worker_id, measured if event.error is None else None)

    def _path(self, task: PromptTask) -> PushPath | None:
        if task.target is None or task.is_ending:
            return None
        return self._paths.path_to(task.target.export.worker_id)

    def _rest(self, task: PromptTask, now: float) -> RestOfPrompt:
        target = task.target
        assert target is not None
        return RestOfPrompt(
            start=task.num_computed_tokens,
            end=task.sequence.num_tokens,
            block_size=self._block_size,
            first_block=target.first_block_index,
            num_target_blocks=len(target.block_ids),
            num_ready_blocks=self._num_ready(task),
            busy_s=self._paths.busy_s(target.export.worker_id, now),
        )

    def _num_ready(self, task: PromptTask) -> int:
        """Blocks that are final and not handed over yet."""
        target = task.target
        if target is None or task.is_ending:
            return 0
        if task.is_computed:
            # The last block may be partly filled; it is complete for this hand-over.
            num_final = len(target.block_ids)
        else:
            num_full = task.num_computed_tokens // self._block_size
            num_final = min(num_full - target.first_block_index, len(target.block_ids))
        return max(0, num_final - task.num_submitted_blocks)

    def _push(self, task: PromptTask, now: float | None = None) -> list[WorkerAction]:
        """All that is ready. None: after an event, before anybody told the time."""
        num_ready = self._num_ready(task)
        if not num_ready:
            return []
        target = task.target
        assert target is not None
        first = target.first_block_index + task.num_submitted_blocks
        blocks = self._pool.blocks_of(task.task_id)[first : first + num_ready]
        push = Push(task.task_id, target, task.num_submitted_blocks, blocks)
        task.num_submitted_blocks += num_ready
        task.num_pushes_in_flight += 1
        self._paths.ordered(target.export.worker_id, num_ready, now)
        return [push]
