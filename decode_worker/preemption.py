"""Which running sequence makes room first: the policy's rule over the core's own tasks."""

from collections.abc import Iterable

from decode_worker.generation_task import GenerationTask
from scheduling.block_pool import BlockPool
from scheduling.victims import Candidate, VictimRule


def in_order_of_preemption(
    tasks: Iterable[GenerationTask], pool: BlockPool, rule: VictimRule
) -> list[GenerationTask]:
    """The first is to make room first; equal ones by task id, so that the order is one."""

    def order(task: GenerationTask) -> tuple[tuple[float, ...], str]:
        candidate = Candidate(
            task_id=task.task_id,
            arrival_at_s=task.arrived_at_s,
            num_tokens=task.num_tokens,
            num_blocks=pool.num_blocks_of(task.task_id),
            tpot_goal_s=task.sequence.tpot_s,
            num_remaining_tokens=task.num_tokens_at_most - task.num_tokens,
        )
        return rule.key(candidate), task.task_id

    return sorted(tasks, key=order)
