"""A pass that was ordered, and whose tokens are on their way to the host."""

from collections.abc import Callable, Set
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from engine.host_copies import HostCopy
from engine.runner import LogitsNotFinite
from engine.sampler import DrawnBatch
from engine.slot_table import Int64Array, SlotTable
from engine.to_device import to_device
from scheduling.sampling import PromptLogprobs
from scheduling.step import StepResult


@dataclass(slots=True, eq=False)
class Scored:
    """What a pass has found out of prompts while it was ordered."""

    prompt_logprobs: list[tuple[int, PromptLogprobs]] = field(default_factory=list)
    # Slots whose prompts gave numbers that are none.
    not_finite: set[int] = field(default_factory=set)


class PendingPass:
    """An implementation of `PendingStep`."""

    def __init__(
        self,
        slots: SlotTable,
        sampling_slots: Int64Array,
        scored: Scored,
        drawn: DrawnBatch | None,
        copy: HostCopy,
        ended: "Callable[[PendingPass], None]",
    ) -> None:
        """`drawn`: None where nothing is sampled; `copy`: of its tensors, or of none, behind the
        pass all the same. `ended` is told once."""
        self._table = slots
        self._slots = sampling_slots
        self._scored = scored
        self._drawn = drawn
        self._copy = copy
        self._ended = ended
        self._is_over = False
        if drawn is not None:
            slots.expect(sampling_slots)

    def tokens_of(self, slots: Int64Array) -> Tensor:
        """What it samples for these slots, [len(slots)] on the device; it must sample for each."""
        assert self._drawn is not None
        token_ids = self._drawn.token_ids
        row_of_slot = np.zeros(self._table.max_num_seqs, np.int64)
        row_of_slot[self._slots] = np.arange(len(self._slots))
        return token_ids.index_select(0, to_device(row_of_slot[slots], token_ids.device))

    def result(self) -> StepResult:
        """See `PendingStep.result`."""
        assert not self._is_over, "the result is taken once"
        prompt_logprobs = tuple(self._scored.prompt_logprobs)
        self._end()
        if self._drawn is None:
            # Nothing is read; but it writes to blocks that somebody may be given now.
            self._copy.wait()
            _require_finite(self._scored.not_finite)
            return StepResult((), (), prompt_logprobs=prompt_logprobs)
        try:
            sampled = self._drawn.read(self._copy.wait())
            bad_slots = self._slots[~sampled.is_finite].tolist()
            _require_finite(self._scored.not_finite.union(bad_slots))
        except BaseException:
            self._table.give_up(self._slots)
            raise
        self._table.arrived(self._slots, sampled.token_ids)
        return StepResult(
            tuple(self._slots.tolist()),
            tuple(sampled.token_ids.tolist()),
            sampled.logprobs,
            prompt_logprobs,
        )

    def discard(self) -> None:
        """See `PendingStep.discard`."""
        if self._is_over:
            return
        self._end()
        if self._drawn is not None:
            self._table.give_up(self._slots)
        self._copy.wait()

    def _end(self) -> None:
        self._is_over = True
        self._ended(self)


def _require_finite(bad_slots: Set[int]) -> None:
    """Raises: LogitsNotFinite, unless there are none."""
    if bad_slots:
        raise LogitsNotFinite(tuple(sorted(bad_slots)))
