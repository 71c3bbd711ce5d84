"""Which running sequence makes room, and when: the policy's rules over the core's own tasks."""

from collections.abc import Iterable, Mapping, Sequence

from decode_worker.generation_task import GenerationTask
from decode_worker.kv_swapping import KvSwapping
from decode_worker.prompts import Prompts
from decode_worker.settings import DecodeSettings
from scheduling.batch_time import BatchShape
from scheduling.block_pool import BlockPool
from scheduling.making_room import Yielding, who_yields
from scheduling.messages import MakeRoom
from scheduling.parked_due import parked_due_at_s
from scheduling.victims import Candidate, VictimRule
from scheduling.worker_events import SwapOut


class Victims:
    """Takes running sequences off the device, one at a time; their owner tells the router."""

    def __init__(
        self,
        settings: DecodeSettings,
        pool: BlockPool,
        prompts: Prompts,
        swapping: KvSwapping,
        running: Mapping[int, GenerationTask],
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._prompts = prompts
        self._swapping = swapping
        self._running = running

    def is_one_needed(self, starved: list[GenerationTask], num_advancing: int) -> bool:
        """Running answers wait for blocks, and nothing that runs will free any, or none soon."""
        if self._settings.is_eager:
            return any(task.is_stuck for task in starved)
        is_going_on = num_advancing or self._prompts.num_begun
        return bool(starved) and not is_going_on and all(task.is_stuck for task in starved)

    def take_one(
        self, starved: list[GenerationTask], now: float
    ) -> tuple[GenerationTask, SwapOut | None]:
        """Who makes room by the rule of the policy, and the copy; None: its KV is given up."""
        among = self._running.values() if self._settings.is_eager else starved
        return self.take_first(_in_order(among, self._pool, self._settings.victims, now), now)

    def take_first(
        self, victims: Sequence[GenerationTask], now: float
    ) -> tuple[GenerationTask, SwapOut | None]:
        """The same, of those that are to make room in this order."""
        running = self._running.values() if self._settings.is_mixed else ()
        beside = _shape_without(victims[0], running)
        num_ahead = self._prompts.num_backlog_tokens
        return self._swapping.take_out_one(victims, now, num_ahead, beside) or (victims[0], None)

    def for_prompt(self, wish: MakeRoom, now: float) -> list[GenerationTask]:
        """Who makes room for a prompt that cannot wait; nobody, where those that can hold too
        little."""
        running = self._running.values()
        if not self._settings.makes_room or any(task.is_stuck for task in running):
            return []  # whoever lacks blocks already gets what others let go of
        in_order = _in_order(running, self._pool, self._settings.victims, now)
        yielding = (
            Yielding(
                task.task_id,
                self._pool.num_blocks_alone(task.task_id),
                parked_due_at_s(now, task.needed_at_s(now)),
            )
            for task in in_order
            # It comes to an end however often it makes room: each time it has gone on before.
            if task.num_output_tokens - task.num_output_at_join >= self._settings.block_size
        )
        chosen = who_yields(yielding, wish.num_blocks, now + wish.due_in_s, now)
        by_id = {task.task_id: task for task in in_order}
        return [by_id[task_id] for task_id in chosen]


def _in_order(
    tasks: Iterable[GenerationTask], pool: BlockPool, rule: VictimRule, now: float
) -> list[GenerationTask]:
    """The first is to make room first; equal ones by task id, so that the order is one."""

    def order(task: GenerationTask) -> tuple[tuple[float, ...], str]:
        candidate = Candidate(
            task_id=task.task_id,
            arrival_at_s=task.arrived_at_s,
            num_tokens=task.num_tokens,
            num_blocks=pool.num_blocks_of(task.task_id),
            tpot_goal_s=task.sequence.tpot_s,
            num_remaining_tokens=task.num_remaining_tokens,
            slack_s=task.next_token_due_at_s(now) - now,
        )
        return rule.key(candidate), task.task_id

    return sorted(tasks, key=order)


def _shape_without(victim: GenerationTask, running: Iterable[GenerationTask]) -> BatchShape:
    """A pass of the others once it has made room: its own tokens can be computed beside them."""
    contexts = [task.num_tokens for task in running if task is not victim]
    return BatchShape(len(contexts), sum(contexts))
