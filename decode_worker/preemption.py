"""Which running sequence makes room first: the policy's rule over the core's own tasks."""

from collections.abc import Iterable

from decode_worker.generation_task import GenerationTask
from scheduling.batch_time import BatchShape
from scheduling.block_pool import BlockPool
from scheduling.victims import Candidate, VictimRule


def in_order_of_preemption(
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


def shape_without(victim: GenerationTask, running: Iterable[GenerationTask]) -> BatchShape:
    """A pass of the others once it has made room: its own tokens can be computed beside them."""
    contexts = [task.num_tokens for task in running if task is not victim]
    return BatchShape(len(contexts), sum(contexts))
