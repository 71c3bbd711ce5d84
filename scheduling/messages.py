"""What a router and a worker tell each other, free of any wire format.

Commands go from router to worker, reports come back. Each names one task. The order of the
messages of one session is kept; a broken session ends every task that it carried.
"""

from dataclasses import dataclass

from scheduling.ids import BlockId, Generation, Incarnation, TaskId, WorkerId
from scheduling.sampling import SamplingParams, StopParams, TokenLogprobs

# Raised by one whenever an older peer could misread a message.
PROTOCOL_VERSION = 1


@dataclass(frozen=True, slots=True)
class SequenceSpec:
    """Everything a worker needs to compute a sequence from any point of it."""

    prompt_token_ids: tuple[int, ...]
    # Output that exists already: after a preemption or a migration.
    output_token_ids: tuple[int, ...]
    sampling: SamplingParams
    stop: StopParams

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.prompt_token_ids) + len(self.output_token_ids)


@dataclass(frozen=True, slots=True)
class KvExport:
    """How a peer reaches the KV pool of one life of a worker."""

    transport: str
    # Meaning depends on the transport: a file name, or host:port.
    address: str
    num_blocks: int
    block_bytes: int
    worker_id: WorkerId
    incarnation: Incarnation
    # Identifies the machine; shared memory is refused across machines.
    host: str


@dataclass(frozen=True, slots=True)
class KvTarget:
    """Where the KV of one task goes: blocks of a decode worker, in the order of the tokens."""

    transfer_id: str
    export: KvExport
    block_ids: tuple[BlockId, ...]
    generations: tuple[Generation, ...]


# --- router to worker -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartPrefill:
    """Compute the KV of all tokens of the sequence and sample the next one."""

    task_id: TaskId
    sequence: SequenceSpec


@dataclass(frozen=True, slots=True)
class PushTo:
    """Send the task's KV there, chunk by chunk as it is computed, or at once if it is."""

    task_id: TaskId
    target: KvTarget


@dataclass(frozen=True, slots=True)
class AdmitGeneration:
    """Allocate blocks for KV that will arrive, and remember the sequence."""

    task_id: TaskId
    sequence: SequenceSpec
    num_blocks: int
    # Blocks [0, num_kv_blocks) are filled by the transfer.
    num_kv_blocks: int
    transfer_id: str


@dataclass(frozen=True, slots=True)
class StartDecode:
    """The prompt is computed: decode as soon as the KV is there."""

    task_id: TaskId
    # All output so far; the last one has no KV yet.
    output_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GrantGrowth:
    """The answer to GrowthNeeded; 0 blocks means: not now."""

    task_id: TaskId
    num_blocks: int


@dataclass(frozen=True, slots=True)
class CancelTask:
    """Stop and give everything back; answered by TaskReleased, also for an unknown task."""

    task_id: TaskId
    reason: str


Command = StartPrefill | PushTo | AdmitGeneration | StartDecode | GrantGrowth | CancelTask

# --- worker to router -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokensEmitted:
    """Output of one sequence from one iteration, already checked for stop conditions."""

    task_id: TaskId
    # Position of token_ids[0] in the output.
    first_token_index: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    # None while the sequence goes on; "stop" or "length".
    finish_reason: str | None = None
    matched_stop: str | int | None = None


@dataclass(frozen=True, slots=True)
class PrefillStarted:
    """The first chunk of the prompt entered an iteration."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class KvPushed:
    """All KV of the task lies in the decode worker's memory."""

    task_id: TaskId
    num_blocks: int
    num_bytes: int
    # Time spent copying, over all chunks.
    copy_s: float
    transport: str


@dataclass(frozen=True, slots=True)
class BlocksGranted:
    """The decode worker allocated blocks and waits for their KV."""

    task_id: TaskId
    target: KvTarget


@dataclass(frozen=True, slots=True)
class BlocksRefused:
    """The decode worker has no room, whatever the ledger said."""

    task_id: TaskId
    num_free_blocks: int


@dataclass(frozen=True, slots=True)
class DecodeStarted:
    """The KV arrived and passed its checks; the sequence joined the batch."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class GrowthNeeded:
    """The response outgrows its prediction; asked before the last block is full."""

    task_id: TaskId
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Preempted:
    """The worker gave the task's blocks back to make room; it must be computed again."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """This worker cannot go on with the task. Followed by TaskReleased."""

    task_id: TaskId
    # A code of scheduling/errors.py, or "transfer_failed".
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class TaskReleased:
    """The last word on a task: no block of it is held here any more."""

    task_id: TaskId


Report = (
    TokensEmitted
    | PrefillStarted
    | KvPushed
    | BlocksGranted
    | BlocksRefused
    | DecodeStarted
    | GrowthNeeded
    | Preempted
    | TaskFailed
    | TaskReleased
)


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """How full a worker is, sent with every frame."""

    num_free_blocks: int
    num_running: int
    num_waiting: int
    # Prompt tokens that are dispatched and not yet computed.
    num_backlog_tokens: int
    # Goes on with its tasks and takes no new ones: it is about to leave.
    is_draining: bool = False


@dataclass(frozen=True, slots=True)
class WorkerHello:
    """Who answers a session, and what it can hold."""

    protocol_version: int
    worker_id: WorkerId
    incarnation: Incarnation
    # "prefill" or "decode".
    role: str
    num_blocks: int
    block_size: int
    max_num_seqs: int
    # Equal on two workers that may exchange KV.
    compatibility: str
    # Equal to the router's own: configuration and tokenizer of the model.
    model_fingerprint: str
    # The pool that others may push into; None on a prefill worker.
    export: KvExport | None = None
