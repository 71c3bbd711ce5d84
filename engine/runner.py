"""What a worker needs of an engine, and how its use can be wrong.

RunnerMisuse (ValueError)
├── UnknownSlot             no live sequence has this slot
├── SlotInFlight            a pass still computes for the sequence that is to leave
├── ResultAwaited           two passes are begun already, and no result of them was taken
├── SlotTaken               a live sequence has this slot already, or the number is out of range
├── InvalidSequence         a token, block or length that the model or the pool does not have
├── InvalidChunk            a chunk that does not lie in its sequence's history
└── BlockTableTooShort      a chunk reaches beyond the blocks of its sequence
LogitsNotFinite (RuntimeError)
RankLost (RuntimeError)         the ranks of the worker can compute nothing together any more
"""

from collections.abc import Sequence
from typing import Protocol

from scheduling.step import ScheduledChunk, SequenceStart, StepPlan, StepResult


class Runner(Protocol):
    """Sequences in slots, and one forward pass at a time. Used from one thread."""

    def add(self, start: SequenceStart) -> None:
        """Take a sequence in. Raises: SlotTaken, InvalidSequence."""
        ...

    def extend_blocks(self, slot: int, block_ids: Sequence[int]) -> None:
        """Append to a sequence's block table. Raises: UnknownSlot, InvalidSequence."""
        ...

    def replace_blocks(self, slot: int, first_index: int, block_ids: Sequence[int]) -> None:
        """Put other blocks at these places of a sequence's block table; nothing is copied.

        Raises: UnknownSlot, InvalidSequence.
        """
        ...

    def remove(self, slot: int) -> None:
        """Forget a sequence; its blocks are the caller's. Raises: UnknownSlot, SlotInFlight."""
        ...

    def step(self, plan: StepPlan) -> StepResult:
        """Compute the chunks; sample and append a token where a chunk asks for it.

        Raises: UnknownSlot, InvalidChunk, BlockTableTooShort before anything is computed;
            LogitsNotFinite before any token is appended, so the step may be repeated without the
            sequences it names.
        """
        ...


class PendingStep(Protocol):
    """A pass that was ordered. It uses the slots and blocks of its plan until one of these ends."""

    def result(self) -> StepResult:
        """Wait for its end, and append its tokens to the histories. Once; the first begun first.

        Raises: LogitsNotFinite, with nothing appended; discard what was begun after it.
        """
        ...

    def discard(self) -> None:
        """Wait for its end. None of its tokens exist; harmless after `result`."""
        ...


class PipelinedRunner(Runner, Protocol):
    """A runner that can be given the next pass while one runs."""

    def begin(self, plan: StepPlan) -> PendingStep:
        """Order the pass; `step` is this and `result`.

        Before the result of the pass before is taken, a chunk may be the one token that that pass
        samples. It is not waited for on the host, unless a chunk computes a prompt's logprobs.
        Raises: as `step`, but for LogitsNotFinite; ResultAwaited.
        """
        ...


class RunnerMisuse(ValueError):
    """The caller broke the contract of `Runner`: a defect of the worker, not of a request."""


class UnknownSlot(RunnerMisuse):
    """No live sequence has this slot."""

    def __init__(self, slot: int) -> None:
        super().__init__(f"no sequence is in slot {slot}; add it before use, do not remove twice")
        self.slot = slot


class SlotInFlight(RunnerMisuse):
    """A pass was begun for the slot and has not ended."""

    def __init__(self, slot: int) -> None:
        super().__init__(f"a pass still computes for slot {slot}; take its result first")
        self.slot = slot


class ResultAwaited(RunnerMisuse):
    """Too many passes would be under way."""

    def __init__(self) -> None:
        super().__init__("two passes are under way; take the result of the first")


class SlotTaken(RunnerMisuse):
    """The slot cannot take a sequence in."""

    def __init__(self, slot: int, max_num_seqs: int) -> None:
        super().__init__(
            f"slot {slot} is in use or not in [0, {max_num_seqs}); "
            "remove the sequence in it first, or raise max_num_seqs"
        )
        self.slot = slot


class InvalidSequence(RunnerMisuse):
    """A token, a block or a length that cannot be."""

    def __init__(self, slot: int, problem: str) -> None:
        super().__init__(f"sequence in slot {slot}: {problem}")
        self.slot = slot


class InvalidChunk(RunnerMisuse):
    """A chunk that does not lie in its sequence's history, or is planned twice."""

    def __init__(self, chunk: ScheduledChunk, problem: str) -> None:
        super().__init__(f"{chunk}: {problem}")
        self.chunk = chunk


class BlockTableTooShort(RunnerMisuse):
    """A chunk would write beyond the blocks of its sequence."""

    def __init__(self, slot: int, needed_tokens: int, held_tokens: int) -> None:
        super().__init__(
            f"slot {slot} needs KV for {needed_tokens} tokens and its blocks hold {held_tokens}; "
            "call extend_blocks before the step"
        )
        self.slot, self.needed_tokens, self.held_tokens = slot, needed_tokens, held_tokens


class LogitsNotFinite(RuntimeError):
    """The model produced NaN or infinity for some sequences; the others are unharmed."""

    def __init__(self, slots: tuple[int, ...]) -> None:
        super().__init__(
            f"the logits of slots {list(slots)} are not finite; fail these requests and check the "
            "weights, or serve the model in float32"
        )
        self.slots = slots


class RankLost(RuntimeError):
    """A rank of this worker is gone, stuck, or did something else than the others.

    What the ranks know has come apart: no step after it can be right, the worker has to end.
    """
