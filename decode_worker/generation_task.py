"""One sequence on a decode worker, from admission until its last block is free."""

import math
from dataclasses import dataclass, field
from enum import Enum, auto

from scheduling.block_leases import LentPlace
from scheduling.ids import BlockId, TaskId
from scheduling.messages import AdmitPrompt, SequenceSpec
from scheduling.prefix_chain import BlockHash
from scheduling.step import SequenceStart
from scheduling.worker_events import SessionId


class Stage(Enum):
    """Where a task stands on this worker."""

    # Its prompt is computed here, or waits to be.
    PROMPT = auto()
    # Blocks granted; KV may be arriving.
    ADMITTED = auto()
    # The prompt is computed; waiting for the last blocks.
    ARRIVING = auto()
    # The prompt was computed here; the answer waits for room and for the router.
    HELD = auto()
    # All KV is here; waiting for a slot.
    READY = auto()
    RUNNING = auto()
    # Its KV lies in host memory; the router says when there is room again.
    PARKED = auto()
    # Over, but a sender might still write into its blocks.
    QUARANTINED = auto()
    # Over, but the pass that runs still writes into its blocks.
    LEAVING = auto()


@dataclass(slots=True)
class StepCount:
    """Steps of a worker so far; all answers that advance together share it."""

    value: int = 0


@dataclass(slots=True)
class GenerationTask:
    """What the core knows of it."""

    task_id: TaskId
    session_id: SessionId
    sequence: SequenceSpec
    num_kv_blocks: int
    stage: Stage = Stage.ADMITTED
    output_token_ids: list[int] = field(default_factory=list)
    slot: int | None = None
    # A growth request is on its way.
    is_growing: bool = False
    # The last growth request was refused.
    is_denied: bool = False
    # Promised, and booked by the ledger, but the pool has no room yet.
    num_owed_blocks: int = 0
    # Hashes of its full blocks so far; empty where prefixes are not cached.
    chain: list[BlockHash] = field(default_factory=list)
    # Of its blocks, the first num_present were here; then num_joined are on their way for others.
    num_present: int = 0
    num_joined: int = 0
    # What it gets before its prompt is begun here; 0 where the prompt is computed elsewhere.
    num_blocks: int = 0
    # Where it borrows what follows these; None for most.
    place: LentPlace | None = None
    # Of a prompt that is computed here: the answer waits then.
    is_to_be_held: bool = False
    # When its request came to the router, by this worker's clock.
    arrived_at_s: float = 0.0
    # When its first token is due.
    due_at_s: float = math.inf
    # Of its output, what there was when it joined the batch last.
    num_output_at_join: int = 0
    # An instant at which it had so many output tokens; None before the first look.
    pace: tuple[float, int] | None = None
    # Of a prompt that is computed here.
    num_computed_tokens: int = 0
    # A block that another prompt is computing: this one waits to share it.
    awaited: BlockHash | None = None
    # With so many tokens one more block is full than the chain says; None: prefixes do not count.
    next_full_at: int | None = None
    # Its place in the batch: the order of joining.
    seat: int = 0
    # None while it does not advance.
    steps: StepCount | None = None
    # How many steps there were when all of its tokens had been told.
    told_at: int = 0
    # At so many steps there is something to be done for it.
    look_at: int = 0
    # Now there is.
    is_due: bool = True

    @classmethod
    def of_prompt(cls, session_id: SessionId, command: AdmitPrompt, now: float) -> "GenerationTask":
        """One whose prompt is to be computed here."""
        return cls(
            command.task_id,
            session_id,
            command.sequence,
            num_kv_blocks=0,
            num_blocks=command.num_blocks,
            place=command.place,
            is_to_be_held=command.is_answer_held,
            arrived_at_s=now - command.age_s,
            due_at_s=now + command.due_in_s,
        )

    @property
    def taken_slot(self) -> int:
        """Its place in the batch, while it is in there."""
        assert self.slot is not None
        return self.slot

    @property
    def is_stuck(self) -> bool:
        """It cannot get more blocks before somebody lets go of some."""
        return self.is_denied or self.num_owed_blocks > 0

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far; the newest token's KV is computed by the next step."""
        steps = self.steps
        num_told = len(self.sequence.prompt_token_ids) + len(self.output_token_ids)
        return num_told if steps is None else num_told + steps.value - self.told_at

    @property
    def num_output_tokens(self) -> int:
        """Output so far, told or not."""
        steps = self.steps
        num_told = len(self.output_token_ids)
        return num_told if steps is None else num_told + steps.value - self.told_at

    @property
    def num_untold_tokens(self) -> int:
        """Of the output, the last ones: only counted, and nobody has heard of them."""
        return 0 if self.steps is None else self.steps.value - self.told_at

    def take_untold(self) -> int:
        """They are about to be told; return how many."""
        if self.steps is None:
            return 0
        num_untold, self.told_at = self.steps.value - self.told_at, self.steps.value
        return num_untold

    def next_token_due_at_s(self, now: float) -> float:
        """When its next token is due, if its mean gap is to be the goal; inf without one."""
        tpot_s = self.sequence.tpot_s
        if tpot_s == math.inf:
            return math.inf
        num_output = self.num_output_tokens
        if self.pace is None:
            self.pace = now, num_output
        at_s, num_then = self.pace
        return at_s + (num_output - num_then + 1) * tpot_s

    def needed_at_s(self, now: float) -> float:
        """Until when it can do without its next token.

        Being ahead of a mean does not help whoever minds the single gap.
        """
        return min(self.next_token_due_at_s(now), now + self.sequence.tbt_s)

    @property
    def num_missing_tokens(self) -> int:
        """Of a prompt that is computed here: tokens still to be computed."""
        return self.sequence.num_tokens - self.num_computed_tokens

    @property
    def num_tokens_at_most(self) -> int:
        """Tokens whose KV this sequence can ever need."""
        return len(self.sequence.prompt_token_ids) + self.sequence.stop.max_tokens - 1

    @property
    def num_remaining_tokens(self) -> int:
        """Still to come, as the router predicts; what the caller allows where it did not say.

        One that has outlived its prediction ends with its next token as far as anybody knows.
        """
        at_most = self.sequence.stop.max_tokens
        predicted = min(self.sequence.num_predicted_tokens or at_most, at_most)
        return max(1, predicted - self.num_output_tokens)

    @property
    def num_shared(self) -> int:
        """Blocks that its own transfer does not fill."""
        return self.num_present + self.num_joined

    def as_start(self, block_table: tuple[BlockId, ...]) -> SequenceStart:
        """How it enters the engine."""
        return SequenceStart(
            slot=self.taken_slot,
            token_ids=self.sequence.prompt_token_ids + tuple(self.output_token_ids),
            num_prompt_tokens=len(self.sequence.prompt_token_ids),
            sampling=self.sequence.sampling,
            block_table=block_table,
        )

    def tokens_between(self, start: int, end: int) -> list[int]:
        """Prompt and output tokens at these positions."""
        prompt = self.sequence.prompt_token_ids
        in_output = max(0, start - len(prompt)), max(0, end - len(prompt))
        return [*prompt[start:end], *self.output_token_ids[slice(*in_output)]]
