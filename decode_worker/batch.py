"""The running answers of a worker: each step gives one token to everyone that has room for it.

A step costs nothing per answer here. All count the same steps, so that lengths need no update, and
the core looks at an answer only when a number of steps is reached at which something is to be done:
it should ask for blocks, its room ends, a block is full, or its tokens have not been told for long.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from math import inf

from decode_worker.generation_task import GenerationTask, StepCount
from decode_worker.growth import Growth
from scheduling.ids import TaskId
from scheduling.step import CountedDecodes, ScheduledChunk, StepPlan
from scheduling.worker_events import SampledOutput

# Entries that count no more are swept once there are so many for each answer, and some.
_MAX_LOOKS_EACH, _MAX_LOOKS_MORE = 4, 64


class Batch:
    """The part of the decode core that knows who advances."""

    def __init__(self, growth: Growth, max_untold_tokens: int) -> None:
        self._growth = growth
        self._max_untold_tokens = max_untold_tokens
        self._steps = StepCount()
        self._seats = count(1)
        # By slot, in the order of their seats.
        self._advancing: dict[int, GenerationTask] = {}
        self._advancing_by_id: dict[TaskId, GenerationTask] = {}
        # They run, and are not known to have room for their next token.
        self._waiting: dict[int, GenerationTask] = {}
        # Tokens of those that advance.
        self.num_context_tokens = 0
        # Goals of those that advance.
        self._num_by_tpot: Counter[float] = Counter()
        self._num_by_tbt: Counter[float] = Counter()
        # (steps, seat, number, task); it counts where the task says the same number of steps.
        self._looks: list[tuple[int, int, int, GenerationTask]] = []
        self._numbers = count()
        # Changes when somebody begins or ceases to advance.
        self._version = 0

    def __len__(self) -> int:
        return len(self._advancing)

    @property
    def advancing(self) -> Iterable[GenerationTask]:
        """Those that get a token in the next step, in order."""
        return self._advancing.values()

    @property
    def num_steps(self) -> int:
        """Steps so far in which answers advanced."""
        return self._steps.value

    @property
    def tightest_tpot_s(self) -> float:
        """The smallest goal of those that advance; inf without any."""
        return min(self._num_by_tpot, default=inf)

    @property
    def tightest_tbt_s(self) -> float:
        """The same, of goals for each gap."""
        return min(self._num_by_tbt, default=inf)

    def untold_since(self, task_id: TaskId) -> int | None:
        """How many steps there were when all tokens of it had been told; None if it does not
        advance."""
        task = self._advancing_by_id.get(task_id)
        return None if task is None else task.told_at

    def join(self, task: GenerationTask) -> None:
        """It runs; whether it has room is seen before the next step."""
        task.seat = next(self._seats)
        task.num_output_at_join = task.num_output_tokens
        self._waiting[task.taken_slot] = task

    def take_in(self) -> list[GenerationTask]:
        """Those that have room advance from now on; return those that lack it, in order."""
        starved: list[GenerationTask] = []
        if not self._waiting:
            return starved
        for task in sorted(self._waiting.values(), key=_seat):
            if self._growth.has_room(task):
                self._advance(task)
            else:
                starved.append(task)
        return starved

    def leave(self, task: GenerationTask, slot: int) -> None:
        """It runs no more. Its tokens have been told."""
        self._waiting.pop(slot, None)
        self._stop(task, slot)

    def halt(self, task: GenerationTask) -> None:
        """It runs, but its next token has no room. Its tokens have been told."""
        self._stop(task, task.taken_slot)
        self._waiting[task.taken_slot] = task

    def watch(self, task: GenerationTask) -> None:
        """What decides when to look at it again has changed."""
        if task.steps is None or task.is_due:
            return
        num_tokens = task.num_tokens
        num_steps = self._growth.looks_at(task) - num_tokens
        if task.next_full_at is not None:
            num_steps = min(num_steps, task.next_full_at - num_tokens)
        if self._max_untold_tokens > 1:
            num_steps = min(num_steps, self._max_untold_tokens - task.num_untold_tokens)
        look_at = self._steps.value + max(1, num_steps)
        if look_at != task.look_at:
            task.look_at = look_at
            heapq.heappush(self._looks, (look_at, task.seat, next(self._numbers), task))

    def plan(self, prompts: tuple[ScheduledChunk, ...], *, is_steady: bool) -> StepPlan:
        """One step of all that advance, beside chunks of prompts; several where only counted.

        `is_steady`: prompts, if there are any, ask for nothing before something else happens.
        """
        if not self._advancing:
            return StepPlan(prompts)
        if self._max_untold_tokens == 1:
            return StepPlan((*map(_chunk, self._advancing.values()), *prompts))
        slots = self._advancing.keys()
        counted = CountedDecodes(slots, self.num_context_tokens, self._version)
        return StepPlan(prompts, counted, self._num_steps_until_look() if is_steady else 1)

    def plan_ahead(self) -> tuple[StepPlan, dict[int, GenerationTask], list[GenerationTask]]:
        """The step after the next: another token for all that advance and surely go on, and the
        first for those that have room by now. Also its rows, and who lacks room, in order.

        `follow` makes it the next one.
        """
        chunks: list[ScheduledChunk] = []
        rows: dict[int, GenerationTask] = {}
        for slot, task in self._advancing.items():
            is_last = task.num_output_tokens + 1 >= task.sequence.stop.max_tokens
            if not is_last and self._growth.has_room(task, num_more=1):
                chunks.append(ScheduledChunk(slot, task.num_tokens, 1, samples=True))
                rows[slot] = task
        starved: list[GenerationTask] = []
        for task in sorted(self._waiting.values(), key=_seat):
            if self._growth.has_room(task):
                chunks.append(_chunk(task))
                rows[task.taken_slot] = task
            else:
                starved.append(task)
        return StepPlan(tuple(chunks)), rows, starved

    def follow(self, rows: Mapping[int, GenerationTask]) -> None:
        """The step that was planned ahead is the next: its rows advance, as far as they still run,
        and nobody else. All tokens have been told."""
        for task in [task for slot, task in self._advancing.items() if slot not in rows]:
            self.halt(task)
        for slot, task in rows.items():
            if slot in self._waiting:
                self._advance(task)

    def step(self, num_steps: int) -> list[GenerationTask]:
        """So many steps were computed; return whom to look at, in order."""
        self._steps.value += num_steps
        self.num_context_tokens += num_steps * len(self._advancing)
        due: list[GenerationTask] = []
        while self._looks and self._looks[0][0] <= self._steps.value:
            look_at, _, _, task = heapq.heappop(self._looks)
            if task.steps is not None and task.look_at == look_at and not task.is_due:
                task.is_due = True
                due.append(task)
        if len(due) > 1:
            due.sort(key=_seat)
        return due

    def turns(
        self, heard: list[tuple[GenerationTask, SampledOutput]], due: list[GenerationTask]
    ) -> Sequence[tuple[GenerationTask, SampledOutput | None]]:
        """Who has an output or is to be looked at, in order; who has one is `heard` already."""
        if self._max_untold_tokens == 1 or (not due and len(heard) < 2):
            return heard
        if not heard:
            return [(task, None) for task in due]
        slots = {output.slot for _, output in heard}
        others = ((task, None) for task in due if task.slot not in slots)
        return sorted((*heard, *others), key=lambda turn: turn[0].seat)

    def check_invariants(self) -> None:
        """Raise AssertionError unless sums and looks are those of the answers."""
        tasks = list(self._advancing.values())
        assert not self._advancing.keys() & self._waiting.keys()
        assert self._advancing_by_id == {task.task_id: task for task in tasks}
        assert tasks == sorted(tasks, key=_seat)
        assert self.num_context_tokens == sum(task.num_tokens for task in tasks)
        assert self._num_by_tpot == Counter(task.sequence.tpot_s for task in tasks)
        assert self._num_by_tbt == Counter(task.sequence.tbt_s for task in tasks)
        assert all(task.steps is None for task in self._waiting.values())
        pending = {(at, task.task_id) for at, _, _, task in self._looks}
        for task in tasks:
            assert self._growth.has_room(task), "it would write into a block that is not its own"
            assert (task.look_at, task.task_id) in pending, "nobody would look at it again"
            assert task.look_at > self._steps.value
            assert not task.is_due

    def _advance(self, task: GenerationTask) -> None:
        del self._waiting[task.taken_slot]
        is_last = not self._advancing or next(reversed(self._advancing.values())).seat < task.seat
        self._advancing[task.taken_slot] = self._advancing_by_id[task.task_id] = task
        if not is_last:
            in_order = sorted(self._advancing.items(), key=lambda item: item[1].seat)
            self._advancing.clear()
            self._advancing.update(in_order)
        task.steps, task.told_at, task.look_at = self._steps, self._steps.value, 0
        task.is_due = False
        self.num_context_tokens += task.num_tokens
        self._num_by_tpot[task.sequence.tpot_s] += 1
        self._num_by_tbt[task.sequence.tbt_s] += 1
        self._version += 1
        self.watch(task)

    def _stop(self, task: GenerationTask, slot: int) -> None:
        if self._advancing.pop(slot, None) is None:
            return
        assert not task.num_untold_tokens
        del self._advancing_by_id[task.task_id]
        task.steps = None
        self.num_context_tokens -= task.num_tokens
        _take_one(self._num_by_tpot, task.sequence.tpot_s)
        _take_one(self._num_by_tbt, task.sequence.tbt_s)
        self._version += 1
        if len(self._looks) > _MAX_LOOKS_EACH * len(self._advancing) + _MAX_LOOKS_MORE:
            self._looks = [e for e in self._looks if e[3].steps and e[3].look_at == e[0]]
            heapq.heapify(self._looks)

    def _num_steps_until_look(self) -> int:
        while True:
            look_at, _, _, task = self._looks[0]
            if task.steps is not None and task.look_at == look_at:
                return look_at - self._steps.value
            heapq.heappop(self._looks)


def _take_one(counts: Counter[float], goal_s: float) -> None:
    counts[goal_s] -= 1
    if not counts[goal_s]:
        del counts[goal_s]


def _seat(task: GenerationTask) -> int:
    return task.seat


def _chunk(task: GenerationTask) -> ScheduledChunk:
    return ScheduledChunk(task.taken_slot, task.num_tokens - 1, 1, samples=True)
