"""Prompts that a mixed worker computes in place, chunk by chunk beside its running answers.

Nothing travels: the blocks in which a prompt is computed are the ones that its answer goes on in.
Which prompts get how many tokens of an iteration is the batching rule's choice
(scheduling/batching.py); here is what may be chosen, and what becomes of it.
"""

import math
from collections.abc import Iterable, Sequence

from decode_worker.batch import Batch
from decode_worker.generation_task import GenerationTask, Stage
from decode_worker.lending import Lending
from scheduling.batching import BatchingRule, IterationChoice, IterationState, PromptWork
from scheduling.block_pool import BlockPool
from scheduling.ids import BlockId, TaskId
from scheduling.messages import PrefillStarted, PromptScored
from scheduling.prefix_reuse import PrefixReuse
from scheduling.slots import SlotPool
from scheduling.step import ScheduledChunk
from scheduling.worker_events import LoadSequence, SendReport, StepFinished, WorkerAction

# Prompts not begun that a rule may choose from. The router holds back what a worker cannot start
# soon, so more would only cost time in every iteration.
_MAX_STARTABLE = 32


class Prompts:
    """The part of the decode core that knows of prompts not computed yet."""

    def __init__(
        self,
        pool: BlockPool,
        slots: SlotPool,
        block_size: int,
        rule: BatchingRule,
        lending: Lending,
        *,
        prefix_caching: bool,
    ) -> None:
        self._pool = pool
        self._slots = slots
        self._block_size = block_size
        self._rule = rule
        self._lending = lending
        self._reuse = PrefixReuse(pool, block_size, is_on=prefix_caching)
        self._is_caching = prefix_caching
        # No slot and no block yet, in the order in which the router sent them.
        self._waiting: dict[TaskId, GenerationTask] = {}
        # Holding both, in order of start.
        self._running: dict[TaskId, GenerationTask] = {}
        self._task_by_slot: dict[int, GenerationTask] = {}
        self._planned: tuple[ScheduledChunk, ...] = ()
        # No prompt can be computed, whatever the rule, before something else happens here.
        self.is_steady = True
        self._num_steps_without_prompt = 0
        # When the pass began that gave running answers their newest tokens, and when these came.
        self.last_decode_at_s = self._newest_tokens_at_s = 0.0
        # Kept as a sum: the load goes out with every frame.
        self.num_backlog_tokens = 0

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    @property
    def num_begun(self) -> int:
        """Prompts that hold a slot."""
        return len(self._running)

    @property
    def begun(self) -> list[GenerationTask]:
        """They hold a slot, in order of start."""
        return list(self._running.values())

    def is_awaiting(self, task: GenerationTask) -> bool:
        """Not begun, and it begins like a prompt that is being computed."""
        return self._reuse.find(task) is None

    def admit(self, task: GenerationTask) -> None:
        """Wait for a slot and for blocks."""
        task.stage = Stage.PROMPT
        task.output_token_ids = list(task.sequence.output_token_ids)
        task.chain = list(self._reuse.chain_of(task.sequence))
        self._waiting[task.task_id] = task
        self.num_backlog_tokens += task.num_missing_tokens

    def of_slot(self, slot: int) -> GenerationTask | None:
        """The prompt that has this slot."""
        return self._task_by_slot.get(slot)

    def planned_tasks(self) -> list[GenerationTask]:
        """Those of the present iteration."""
        return [self._task_by_slot[chunk.slot] for chunk in self._planned]

    def steps_ran(self, num_steps: int, now: float) -> None:
        """The last plan was repeated so often: the last time began about then."""
        if self.last_decode_at_s >= self._newest_tokens_at_s:
            self._newest_tokens_at_s = now  # it has ended since the last look
        self.last_decode_at_s = now - (now - self.last_decode_at_s) / num_steps

    def forget_plan(self) -> None:
        """The iteration failed: nothing of it was computed."""
        self._planned = ()

    def plan(
        self, running: Batch, now: float
    ) -> tuple[list[WorkerAction], bool, tuple[ScheduledChunk, ...]]:
        """What to do first, whether running answers get their token, and the chunks of prompts."""
        begun = list(self._running.values())
        startable = self._startable()
        prompts = [*begun, *(task for task, _ in startable)]
        self.is_steady = not prompts
        work = [
            PromptWork(task.num_missing_tokens, task.num_computed_tokens, task.due_at_s)
            for task in begun
        ]
        work += [self._as_work(task, num_shared) for task, num_shared in startable]
        choice = self._rule.choose(self._state_of(running, work, len(startable), now))
        num_refused = self._lending.num_refused
        actions, self._planned = self._schedule(choice, prompts)
        if not self._planned and self._lending.num_refused > num_refused:
            # Others may begin instead, and no event would call for another look.
            more, has_decodes, chunks = self.plan(running, now)
            return [*actions, *more], has_decodes, chunks
        self._num_steps_without_prompt = 0 if self._planned else self._num_steps_without_prompt + 1
        return actions, choice.has_decodes, self._planned

    def plan_chosen(
        self, chosen: Sequence[GenerationTask], max_tokens: int
    ) -> tuple[list[WorkerAction], tuple[ScheduledChunk, ...]]:
        """These go next, in this order, as far as there are slots, blocks and tokens for them."""
        chunks: list[tuple[int, int]] = []
        num_slots = self._slots.num_free
        for index, task in enumerate(chosen):
            num_tokens = min(task.num_missing_tokens, max_tokens)
            needs_slot = task.slot is None
            if num_tokens and (num_slots or not needs_slot):
                chunks.append((index, num_tokens))
                num_slots -= needs_slot
                max_tokens -= num_tokens
        actions, self._planned = self._schedule(IterationChoice(True, tuple(chunks)), chosen)
        return actions, self._planned

    def step_finished(self, event: StepFinished) -> tuple[list[WorkerAction], list[GenerationTask]]:
        """What the iteration computed of prompts; the second are those that are complete now."""
        actions: list[WorkerAction] = []
        for slot, logprobs in event.prompt_logprobs:
            scored = self._task_by_slot[slot]
            actions.append(SendReport(scored.session_id, PromptScored(scored.task_id, logprobs)))
        if not self._planned:
            if len(self):
                self._num_steps_without_prompt += event.num_steps - 1
            return actions, []
        complete: list[GenerationTask] = []
        for chunk in self._planned:
            task = self._task_by_slot[chunk.slot]
            self._reuse.computed(task, chunk.num_tokens)
            task.num_computed_tokens += chunk.num_tokens
            self.num_backlog_tokens -= chunk.num_tokens
            if chunk.samples:
                complete.append(task)
        self._planned = ()
        return actions, complete

    def leave(self, task: GenerationTask) -> None:
        """It is computed, or it ends: what it has not computed, others have to."""
        self.num_backlog_tokens -= task.num_missing_tokens
        self._waiting.pop(task.task_id, None)
        if self._running.pop(task.task_id, None) is not None:
            assert task.slot is not None
            del self._task_by_slot[task.slot]
            self._reuse.end(task)
        if self._is_caching:
            task.next_full_at = (len(task.chain) + 1) * self._block_size + 1

    def check_invariants(self) -> None:
        """Raise AssertionError unless slots, stages and sums agree."""
        tasks = [*self._waiting.values(), *self._running.values()]
        assert all(task.stage is Stage.PROMPT for task in tasks)
        assert all(task.slot is None for task in self._waiting.values())
        assert {task.slot for task in self._running.values()} == set(self._task_by_slot)
        assert self.num_backlog_tokens == sum(task.num_missing_tokens for task in tasks)
        assert self._running or not self._reuse.num_in_work, "one waits for a prompt that is gone"

    def _startable(self) -> list[tuple[GenerationTask, int]]:
        """Prompts that have a slot and blocks as soon as they are chosen, and what is cached."""
        found: list[tuple[GenerationTask, int]] = []
        num_free = self._pool.num_free_blocks
        for task in self._waiting.values():
            if len(found) >= min(self._slots.num_free, _MAX_STARTABLE):
                break
            if self._lending.is_waiting_for_host(task):
                continue
            shared = self._reuse.find(task)
            if shared is None:
                continue
            # Cached blocks that nobody holds count as free until they are shared.
            num_free -= task.num_blocks
            if num_free < 0:
                break
            found.append((task, len(shared)))
        return found

    def _state_of(
        self, running: Batch, work: list[PromptWork], num_new: int, now: float
    ) -> IterationState:
        due_at_s = math.inf
        if running.tightest_tpot_s < math.inf:
            due_at_s = min([task.next_token_due_at_s(now) for task in running.advancing])
        return IterationState(
            now=now,
            num_decode=len(running),
            decode_context=running.num_context_tokens,
            next_token_due_at_s=due_at_s,
            last_decode_at_s=self.last_decode_at_s,
            newest_tokens_at_s=self._newest_tokens_at_s,
            tightest_tpot_s=running.tightest_tpot_s,
            tightest_tbt_s=running.tightest_tbt_s,
            num_steps_without_prompt=self._num_steps_without_prompt,
            prompts=work,
            num_startable=num_new,
            num_begun=len(self._running),
            num_free_blocks=self._pool.num_free_blocks,
            num_blocks=self._pool.num_blocks,
        )

    def _schedule(
        self, choice: IterationChoice, prompts: Sequence[GenerationTask]
    ) -> tuple[list[WorkerAction], tuple[ScheduledChunk, ...]]:
        actions: list[WorkerAction] = []
        chunks: list[ScheduledChunk] = []
        for index, num_tokens in choice.chunks:
            task = prompts[index]
            if task.slot is None:
                started = self._begin(task)
                if started is None:
                    continue  # it begins like one that was chosen before it: it waits for that
                actions += started
                if task.slot is None:
                    continue  # it was to borrow a place that is gone
            num_tokens = min(num_tokens, task.num_missing_tokens)
            samples = num_tokens == task.num_missing_tokens
            chunk = ScheduledChunk(task.taken_slot, task.num_computed_tokens, num_tokens, samples)
            chunks.append(chunk)
        return actions, tuple(chunks)

    def _begin(self, task: GenerationTask) -> Iterable[WorkerAction] | None:
        shared = self._reuse.find(task)
        if shared is None:
            return None
        if task.place is not None and not self._lending.fits(task):
            return self._refuse(task)
        if not self._allocate(task, shared):
            return None
        if task.place is not None and not self._lending.borrow(task):
            self._lending.release(task)
            return self._refuse(task)
        self.num_backlog_tokens -= len(shared) * self._block_size
        task.num_computed_tokens = len(shared) * self._block_size
        task.slot = self._slots.take()
        del self._waiting[task.task_id]
        self._running[task.task_id] = self._task_by_slot[task.slot] = task
        self._reuse.begin(task)
        start = task.as_start(self._pool.blocks_of(task.task_id))
        return (
            LoadSequence(start, task.sequence.stop),
            SendReport(task.session_id, PrefillStarted(task.task_id, task.num_computed_tokens)),
        )

    def _refuse(self, task: GenerationTask) -> Iterable[WorkerAction]:
        del self._waiting[task.task_id]
        self.num_backlog_tokens -= task.num_missing_tokens
        return (self._lending.refuse(task),)

    def _allocate(self, task: GenerationTask, shared: tuple[BlockId, ...]) -> bool:
        num_new = max(0, task.num_blocks - len(shared))
        return self._pool.allocate(task.task_id, num_new, shared) is not None

    def _as_work(self, task: GenerationTask, num_shared: int) -> PromptWork:
        num_cached_tokens = num_shared * self._block_size
        num_missing_tokens = task.num_missing_tokens - num_cached_tokens
        num_new_blocks = max(0, task.num_blocks - num_shared)
        return PromptWork(num_missing_tokens, num_cached_tokens, task.due_at_s, num_new_blocks)
