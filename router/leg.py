"""One half of a task on one worker: what it holds there, and what was promised it."""

import math
from dataclasses import dataclass
from enum import Enum, auto

from router.events import Claim, Role
from scheduling.block_leases import LentPlace
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvTarget
from scheduling.prefix_chain import PromptPrefix


class LegState(Enum):
    """What is known of one leg's blocks."""

    # The ledger has been asked.
    RESERVING = auto()
    # Reserved; the worker has been told.
    HELD = auto()
    # Its KV lies in the worker's host memory; it holds nothing that the ledger counts.
    PARKED = auto()
    # Parked, and the ledger has been asked for room to go on.
    RESUMING = auto()
    # The worker has been told to stop; its TaskReleased is awaited.
    RELEASING = auto()


@dataclass(slots=True)
class Leg:
    """One half of a task. It outlives the task until its blocks are back."""

    claim: Claim
    num_blocks: int
    state: LegState = LegState.RESERVING
    worker_id: WorkerId | None = None
    incarnation: Incarnation | None = None
    # The task no longer wants this leg; release it as soon as that is possible.
    is_abandoned: bool = False
    # False where the ledger was away: then the worker decides whether there is room.
    is_booked: bool = True
    # Of a prompt: tokens dispatched and not yet computed.
    num_backlog_tokens: int = 0
    # Decode: blocks that the transfer fills.
    num_kv_blocks: int = 0
    # Of a prompt: tokens whose KV the worker needs.
    num_tokens: int = 0
    # Prompt and the longest answer.
    num_tokens_at_most: int = 0
    # Names the blocks of the prompt that the worker will have; None where they do not count.
    prefix: PromptPrefix | None = None
    # Decode: the worker computes the prompt as well, and decodes in place.
    is_in_place: bool = False
    # Decode, in place: blocks for the prompt only; its answer waits for more when it is computed.
    is_staged: bool = False
    # What it will need then, and what the ledger is asked for now.
    num_due_blocks: int = 0
    num_asked_blocks: int = 0
    has_outgrown: bool = False  # staged again: what it holds is no part of the reserve
    # Decode: where it borrows blocks that are booked for another, and how many it still does.
    place: LentPlace | None = None
    num_borrowed_blocks: int = 0
    is_place_asked: bool = False  # staged: its worker is asked whether that is still there
    # Decode: it lends nothing before it has so many tokens; its worker knew better once.
    lends_from_tokens: int = 0
    # Decode: where the KV goes, once granted. Prefill: None.
    target: KvTarget | None = None
    # Decode: since when the KV lies in host memory; None while it does not.
    parked_at_s: float | None = None
    parked_due_at_s: float = math.inf  # newcomers that are due sooner go before it

    @property
    def num_staged_blocks(self) -> int:
        """Of the worker's reserve, while it is staged."""
        return 0 if self.has_outgrown else self.num_blocks

    @property
    def task_id(self) -> TaskId:
        """The try that the leg is for."""
        return self.claim.task_id

    @property
    def role(self) -> Role:
        """Which half of the task."""
        return self.claim.role
