"""What a router and a worker tell each other, free of any wire format.

Commands go from router to worker, reports come back. Each names one task. The order of the
messages of one session is kept; a broken session ends every task that it carried.
"""

import math
from dataclasses import field
from enum import StrEnum
from typing import Final, NamedTuple

from scheduling.batch_time_online import PassTimeError
from scheduling.block_leases import BlocksInherited, LentPlace
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport, KvTarget
from scheduling.sampling import PromptLogprobs, SamplingParams, StopParams, TokenLogprobs
from scheduling.value import value

# Raised by one whenever an older peer could misread a message.
PROTOCOL_VERSION = 5


@value
class SequenceSpec:
    """Everything a worker needs to compute a sequence from any point of it."""

    prompt_token_ids: tuple[int, ...]
    # Output that exists already: after a preemption or a migration.
    output_token_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: StopParams
    # Cached KV is shared among sequences of equal salt only.
    cache_salt: str = ""
    tpot_s: float = math.inf  # what the caller wishes the mean gap between tokens to be
    tbt_s: float = math.inf  # and at most each gap; never below tpot_s
    num_predicted_tokens: int = 0  # of the whole answer, an upper bound; 0: the router did not say

    @property
    def needs_prompt_logits(self) -> bool:
        """The prompt must be computed even where its KV exists already."""
        return self.sampling.num_prompt_logprobs is not None

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)


class Admission(StrEnum):
    """What an operator lets a worker take on; its running tasks are its own in every state."""

    OPEN = "open"
    # No new tasks.
    CORDONED = "cordoned"
    # No new tasks, and every router moves its tasks elsewhere.
    EVACUATING = "evacuating"


# Of TaskFailed: blocks that another task's transfer was to fill will not come. Nobody's fault.
PREFIX_LOST: Final = "prefix_lost"

# --- router to worker -------------------------------------------------------------------------


@value
class SetAdmission:
    """An operator's wish. The worker keeps it for its life and tells every router."""

    admission: Admission


@value
class StartPrefill:
    """Compute the KV of all tokens of the sequence and sample the next one."""

    task_id: TaskId
    sequence: SequenceSpec


@value
class PushTo:
    """Send the task's KV there, while it is computed or afterwards, or at once if it is."""

    task_id: TaskId
    target: KvTarget


@value
class AdmitGeneration:
    """Allocate blocks for KV that will arrive, and remember the sequence."""

    task_id: TaskId
    sequence: SequenceSpec
    num_blocks: int
    # Blocks [0, num_kv_blocks) are filled by the transfer.
    num_kv_blocks: int
    transfer_id: str
    # The prefill worker that sends the KV. Tasks of one sender may wait for each other's blocks;
    # empty: this one waits for nobody's.
    source_worker_id: str = ""
    # Since the request came to the router.
    age_s: float = 0.0


@value
class AdmitPrompt:
    """Compute the sequence on a mixed worker and go on with its answer there: nothing travels."""

    task_id: TaskId
    sequence: SequenceSpec
    # For the tokens that exist and as much of the answer as is reserved.
    num_blocks: int
    # Until the first token is due; negative when it is late.
    due_in_s: float = math.inf
    # Since the request came to the router.
    age_s: float = 0.0
    # Where it borrows the rest. BlocksRefused is the answer if that is gone when it would begin.
    place: LentPlace | None = None
    is_answer_held: bool = False  # with its blocks, until GrantGrowth and StartDecode


@value
class StartDecode:
    """The prompt is computed: decode as soon as the KV is there."""

    task_id: TaskId
    # All output so far; the last one has no KV yet.
    output_token_ids: tuple[int, ...]
    place: LentPlace | None = None  # that it begins in, or it says BlocksRefused


@value
class GrantGrowth:
    """The answer to GrowthNeeded; 0 blocks means: not now."""

    task_id: TaskId
    num_blocks: int


@value
class ResumeGeneration:
    """Go on with a task that was swapped out; answered by DecodeStarted or BlocksRefused."""

    task_id: TaskId
    # All that it may still need, what it had before included.
    num_blocks: int


@value
class MakeRoom:
    """A prompt that cannot wait lacks so many blocks: answers that can wait are to let go of them.

    Answered by RoomMade, behind the reports on these answers. Nothing is kept for the prompt: it
    is sent when the ledger has booked what was given back.
    """

    task_id: TaskId  # of the prompt, which is nowhere yet
    num_blocks: int
    # Until its first token is due.
    due_in_s: float


@value
class CancelTask:
    """Stop and give everything back; answered by TaskReleased, also for an unknown task."""

    task_id: TaskId
    reason: str


Command = (
    StartPrefill
    | PushTo
    | AdmitGeneration
    | AdmitPrompt
    | StartDecode
    | GrantGrowth
    | ResumeGeneration
    | MakeRoom
    | CancelTask
)

# --- worker to router -------------------------------------------------------------------------


class TokensEmitted(NamedTuple):
    """Output of one sequence from one iteration, already checked for stop conditions.

    A named tuple, because it is made for every token: a third of the time of a frozen dataclass.
    """

    task_id: TaskId
    # Position of token_ids[0] in the output.
    first_token_index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    # None while the sequence goes on; "stop" or "length".
    finish_reason: str | None = None
    matched_stop: str | int | None = None


@value
class PrefillStarted:
    """The first chunk of the prompt entered an iteration."""

    task_id: TaskId
    # Tokens whose KV was here already; the first ones of the sequence.
    num_cached_tokens: int = 0


@value
class PromptScored:
    """Logprobs of prompt tokens, where asked for: from the second on, in order, before output."""

    task_id: TaskId
    logprobs: PromptLogprobs


@value
class KvPushed:
    """All KV of the task lies in the decode worker's memory."""

    task_id: TaskId
    num_blocks: int
    num_bytes: int
    # Time spent copying, over all chunks.
    copy_s: float
    transport: str


@value
class BlocksGranted:
    """The decode worker allocated blocks and waits for their KV."""

    task_id: TaskId
    target: KvTarget


@value
class BlocksRefused:
    """The decode worker has no room, whatever the ledger said."""

    task_id: TaskId
    num_free_blocks: int


@value
class DecodeStarted:
    """The KV arrived and passed its checks; the sequence joined the batch."""

    task_id: TaskId
    # By which the KV came; empty where none was moved.
    transport: str = ""


@value
class GrowthNeeded:
    """The response outgrows its prediction; asked before the last block is full."""

    task_id: TaskId
    num_blocks: int


@value
class Preempted:
    """The worker gave the task's blocks back to make room; it must be computed again."""

    task_id: TaskId
    keeps_kv: bool = False  # it gave only its slot back, and waits beside its KV for more blocks


@value
class SwappedOut:
    """The task's KV moved to the worker's host memory; it holds no block until it is resumed."""

    task_id: TaskId
    # That were copied; what lay there already was not.
    num_blocks: int


@value
class RoomMade:
    """The answer to MakeRoom; 0 blocks: those that can wait have too few, and nobody let go."""

    task_id: TaskId
    num_blocks: int


@value
class TaskFailed:
    """This worker cannot go on with the task. Followed by TaskReleased."""

    task_id: TaskId
    # A code of scheduling/errors.py, "transfer_failed", or PREFIX_LOST.
    code: str
    message: str


@value
class TaskReleased:
    """The last word on a task: no block of it is held here any more."""

    task_id: TaskId


Report = (
    TokensEmitted
    | PrefillStarted
    | PromptScored
    | KvPushed
    | BlocksGranted
    | BlocksRefused
    | BlocksInherited
    | DecodeStarted
    | GrowthNeeded
    | Preempted
    | SwappedOut
    | RoomMade
    | TaskFailed
    | TaskReleased
)


@value
class WorkerLoad:
    """How full a worker is, sent with every frame."""

    num_free_blocks: int
    num_running: int
    num_waiting: int
    num_backlog_tokens: int  # of prompts: dispatched and not yet computed
    # Goes on with its tasks and takes no new ones: it is about to leave.
    is_draining: bool = False
    # Tasks that hold or await anything here, of all routers.
    num_tasks: int = 0
    admission: Admission = Admission.OPEN
    # Tasks whose KV lies in host memory, of all routers; what is due sooner goes before them.
    num_parked: int = 0
    # Of the same size as KV blocks, in host memory, for parked tasks; 0 where there is none.
    num_swap_blocks: int = 0
    num_free_swap_blocks: int = 0
    parked_due_in_s: float | None = field(default=None, compare=False)  # None: what is new waits
    pass_time_error: PassTimeError | None = field(default=None, compare=False)  # None: no news

    @property
    def takes_new_tasks(self) -> bool:
        """Neither about to leave nor closed by an operator."""
        return not self.is_draining and self.admission is Admission.OPEN


@value
class WorkerHello:
    """Who answers a session, and what it can hold."""

    protocol_version: int
    worker_id: WorkerId
    incarnation: Incarnation
    # "prefill", "decode", or "mixed": a decode worker that computes prompts as well.
    role: str
    num_blocks: int
    block_size: int
    max_num_seqs: int
    compatibility: str  # equal on two workers that may exchange KV
    model_fingerprint: str  # equal to the router's own: configuration and tokenizer of the model
    export: KvExport | None = None  # the pool that others may push into; None on a prefill worker
    admission: Admission = Admission.OPEN  # when the session opened; then the load says it
    max_message_bytes: int = 64 * 1024 * 1024  # gRPC ends the session for a larger one
    num_growth_blocks: int = 0  # of num_blocks, for running answers that grow, not for new tasks
    # Above 0: num_blocks counts host memory too, which the worker fills; no task may need more.
    max_task_blocks: int = 0
    max_num_batched_tokens: int = 0  # in one iteration; 0: it did not say
    policy: str = ""  # the name of the one that it decides by; "": it did not say
    makes_room: bool = False  # it knows MakeRoom, and its answers may wait for prompts
    num_ranks: int = 1  # processes that share its model
    start_s: float = 0.0  # from the start of its process until it was ready; 0: it did not say
    traits: tuple[str, ...] = ()  # NAME=VALUE, of which `compatibility` is made; (): it did not say
