"""A runner that takes, for each step, the cores that other engines of the machine leave."""

from collections.abc import Sequence

import torch

from engine.runner import Runner
from runtime.clock import Clock
from runtime.core_sharing import CoreSharing
from scheduling.step import SequenceStart, StepPlan, StepResult


class CoreSharingRunner:
    """Changes the number of threads between steps; results must not depend on it."""

    def __init__(self, inner: Runner, sharing: CoreSharing, clock: Clock) -> None:
        self._inner = inner
        self._sharing = sharing
        self._clock = clock
        # Of the thread that steps; unknown until its first step.
        self._num_threads = 0

    def add(self, start: SequenceStart) -> None:
        self._inner.add(start)

    def extend_blocks(self, slot: int, block_ids: Sequence[int]) -> None:
        self._inner.extend_blocks(slot, block_ids)

    def remove(self, slot: int) -> None:
        self._inner.remove(slot)

    def step(self, plan: StepPlan) -> StepResult:
        num_threads = self._sharing.begin(self._clock.now())
        if num_threads != self._num_threads:
            torch.set_num_threads(num_threads)
            self._num_threads = num_threads
        try:
            return self._inner.step(plan)
        finally:
            self._sharing.end(self._clock.now())
