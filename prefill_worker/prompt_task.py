"""One prompt on a prefill worker, from dispatch until its last block has left."""

from dataclasses import dataclass

from scheduling.ids import TaskId
from scheduling.kv_export import KvTarget
from scheduling.messages import SequenceSpec
from scheduling.prefix_chain import BlockHash
from scheduling.worker_events import SessionId


@dataclass(slots=True)
class PromptTask:
    """What the core knows of it."""

    task_id: TaskId
    session_id: SessionId
    sequence: SequenceSpec
    # Hashes of its full blocks; empty where prefixes are not cached.
    chain: tuple[BlockHash, ...] = ()
    # A block that another prompt is computing: this one waits to share it.
    awaited: BlockHash | None = None
    num_computed_tokens: int = 0
    # Held while the prompt is being computed; None before and after.
    slot: int | None = None
    target: KvTarget | None = None
    # Of the target's blocks, the first num_submitted_blocks have been handed to the transfer.
    num_submitted_blocks: int = 0
    num_pushed_blocks: int = 0
    num_pushed_bytes: int = 0
    copy_s: float = 0.0
    # By which the last blocks went; empty before any did.
    transport: str = ""
    num_pushes_in_flight: int = 0
    # Cancelled, failed or finished: released as soon as no copy reads its blocks.
    is_ending: bool = False

    @property
    def is_computed(self) -> bool:
        """All KV of the sequence exists."""
        return self.num_computed_tokens == self.sequence.num_tokens

    @property
    def num_missing_tokens(self) -> int:
        """Tokens still to be computed."""
        return self.sequence.num_tokens - self.num_computed_tokens
