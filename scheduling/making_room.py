"""Which running answers let go of their blocks for a prompt that cannot wait for any. Pure.

A prompt is urgent once it has waited for a good part of the time in which its first token could
still be in time. Answers make room for it that are so far ahead of their goals that the prompt goes
before them also when they wait in host memory; where these hold too little, nobody makes room.
Source: AccelGen, urgent requests (short of memory, the running request of the largest slack goes).
"""

from collections.abc import Iterable
from typing import NamedTuple

from scheduling.ids import TaskId

# Of the time that a prompt may wait: whoever has waited for so much of it is urgent.
URGENT_SHARE = 0.9


class Yielding(NamedTuple):
    """An answer that might let go of its blocks."""

    task_id: TaskId
    # That would be free then: nobody else holds them.
    num_blocks: int
    # Newcomers that are due sooner would go before it.
    parked_due_at_s: float


def is_urgent(arrival_at_s: float, hopeless_at_s: float, now: float) -> bool:
    """Whether a prompt is not to wait any longer; one that is too late by now has no hurry.

    `hopeless_at_s`: from when on its first token cannot be in time; inf: it may wait for ever.
    """
    if not now < hopeless_at_s < float("inf"):
        return False
    return now - arrival_at_s >= URGENT_SHARE * (hopeless_at_s - arrival_at_s)


def who_yields(
    in_order: Iterable[Yielding], num_blocks: int, due_at_s: float, now: float
) -> list[TaskId]:
    """Who lets go of so many blocks for a prompt that is due then; nobody where there are too few.

    `in_order`: of preemption. Nobody is among them without whom the others have enough.
    """
    yielding: list[Yielding] = []
    num_found = 0
    for answer in in_order:
        if num_found >= num_blocks:
            break
        if answer.num_blocks and max(due_at_s, now) < answer.parked_due_at_s:
            yielding.append(answer)
            num_found += answer.num_blocks
    if num_found < num_blocks:
        return []
    # Whoever is to make room rather later is let off first.
    for answer in yielding[::-1]:
        if num_found - answer.num_blocks >= num_blocks:
            yielding.remove(answer)
            num_found -= answer.num_blocks
    return [answer.task_id for answer in yielding]
