"""What a worker's core is told and what it wants done; shared by prefill and decode."""

from dataclasses import field
from typing import NewType

from scheduling.ids import BlockId, Generation, TaskId
from scheduling.kv_export import KvTarget
from scheduling.messages import Command, Report, TokensEmitted
from scheduling.prefix_index import PrefixChanges
from scheduling.sampling import PromptLogprobs, StopParams, TokenLogprobs
from scheduling.step import SequenceStart
from scheduling.value import value

# One router's session with this worker; never reused within a life.
SessionId = NewType("SessionId", int)

# --- events -----------------------------------------------------------------------------------


@value
class CommandArrived:
    session_id: SessionId
    command: Command
    # By the worker's clock.
    at_s: float = field(default=0.0, compare=False)


@value
class SessionLost:
    """The router is gone; nobody waits for its tasks any more."""

    session_id: SessionId


@value
class SampledOutput:
    """One sampled token after detokenisation and the stop checks."""

    slot: int
    token_id: int
    # Text that is certain by now; may be empty.
    text: str
    logprobs: TokenLogprobs | None = None
    # None while the sequence goes on; "stop" or "length".
    finish_reason: str | None = None
    matched_stop: str | int | None = None

    def as_report(
        self, task_id: TaskId, token_index: int, untold_ids: tuple[int, ...] = ()
    ) -> TokensEmitted:
        """What the router is told of it, and of tokens before it that say nothing."""
        return TokensEmitted(
            task_id=task_id,
            first_token_index=token_index,
            token_ids=(*untold_ids, self.token_id),
            text=self.text,
            logprobs=() if self.logprobs is None else (self.logprobs,),
            finish_reason=self.finish_reason,
            matched_stop=self.matched_stop,
        )


@value
class StepFinished:
    """The planned iteration ran; outputs in the order of its sampling chunks.

    Of sequences that are only counted, those that end have an output, at the beginning.
    """

    outputs: tuple[SampledOutput, ...]
    # (slot, logprobs) of prompt tokens, where asked for.
    prompt_logprobs: tuple[tuple[int, PromptLogprobs], ...] = ()
    # At most as many as were planned.
    num_steps: int = 1


@value
class StepFailed:
    """The planned iteration raised; none of its tokens exist."""

    message: str
    # The sequences to blame; None blames all. The others are planned again.
    slots: tuple[int, ...] | None = None


@value
class PushFinished:
    """One Push ended, well or not; its source blocks are not read any more."""

    task_id: TaskId
    num_blocks: int
    num_bytes: int
    copy_s: float
    # None when every block lies in the peer's memory; else what went wrong.
    error: str | None = None
    # By which the blocks went; empty where none did.
    transport: str = ""


@value
class KvArrived:
    """Every awaited block carries its generation, and the sampled checksums are right."""

    task_id: TaskId
    # By which the blocks came; empty where none was moved.
    transport: str = ""


@value
class KvRefused:
    """Awaited blocks are damaged, stale, or did not come in time."""

    task_id: TaskId
    code: str
    message: str


@value
class QuarantineCleared:
    """No sender can write into the revoked blocks of this task any more."""

    task_id: TaskId


@value
class KvSwapped:
    """Blocks were copied to host memory or back, and so long the engine waited."""

    num_blocks: int
    copy_s: float
    is_out: bool


WorkerEvent = (
    CommandArrived
    | SessionLost
    | StepFinished
    | StepFailed
    | PushFinished
    | KvArrived
    | KvRefused
    | QuarantineCleared
    | KvSwapped
)

# --- actions ----------------------------------------------------------------------------------


@value
class LoadSequence:
    """Put a sequence into the engine, with the stop conditions that the shell checks."""

    start: SequenceStart
    stop: StopParams


@value
class ExtendSequence:
    """More blocks for the sequence in `slot`."""

    slot: int
    block_ids: tuple[BlockId, ...]


@value
class ReplaceBlocks:
    """Other blocks from `first_index` on in the table of the sequence in `slot`.

    It has written nothing there, so nothing is to be copied.
    """

    slot: int
    first_index: int
    block_ids: tuple[BlockId, ...]


@value
class DropSequence:
    """Take the sequence in `slot` out of the engine."""

    slot: int


@value
class Push:
    """Copy blocks to the target's blocks [first_index, first_index + len(block_ids))."""

    task_id: TaskId
    target: KvTarget
    first_index: int
    block_ids: tuple[BlockId, ...]


@value
class CancelPush:
    """Give queued copies of this task up; each is still answered by PushFinished."""

    task_id: TaskId
    transfer_id: str


@value
class ExpectKv:
    """Tell the receiver which generation to accept in which block, before anyone may send."""

    block_ids: tuple[BlockId, ...]
    generations: tuple[Generation, ...]


@value
class AwaitKv:
    """Watch for these blocks; answer with KvArrived or KvRefused, within the shell's limit."""

    task_id: TaskId
    block_ids: tuple[BlockId, ...]
    generations: tuple[Generation, ...]


@value
class RevokeKv:
    """Accept nothing more in these blocks; answer with QuarantineCleared once nobody writes."""

    task_id: TaskId
    block_ids: tuple[BlockId, ...]


@value
class SwapOut:
    """Copy blocks to host memory, the first to the first, before anything else uses them."""

    block_ids: tuple[BlockId, ...]
    swap_block_ids: tuple[BlockId, ...]


@value
class SwapIn:
    """Copy blocks back from host memory, the first to the first, before the next iteration."""

    swap_block_ids: tuple[BlockId, ...]
    block_ids: tuple[BlockId, ...]


@value
class TellPrefixes:
    """Tell every router which cached blocks came and went."""

    changes: PrefixChanges


@value
class SendReport:
    session_id: SessionId
    report: Report


# What the side of a worker performs that moves KV.
KvAction = Push | CancelPush | ExpectKv | AwaitKv | RevokeKv | SwapOut | SwapIn
WorkerAction = (
    LoadSequence
    | ExtendSequence
    | ReplaceBlocks
    | DropSequence
    | Push
    | CancelPush
    | ExpectKv
    | AwaitKv
    | RevokeKv
    | SwapOut
    | SwapIn
    | TellPrefixes
    | SendReport
)
