"""What a prompt need not compute: blocks that are cached, and blocks that another is computing."""

from collections.abc import Sequence
from typing import Protocol

from scheduling.block_pool import BlockPool
from scheduling.ids import BlockId, TaskId
from scheduling.messages import SequenceSpec
from scheduling.prefix_chain import BlockHash, chain_root, extend_chain
from scheduling.worker_events import TellPrefixes, WorkerAction


class PromptInWork(Protocol):
    """What is asked of a prompt that is computed, or waits to be."""

    # A block that another prompt is computing: this one waits to share it.
    awaited: BlockHash | None

    @property
    def task_id(self) -> TaskId: ...

    @property
    def sequence(self) -> SequenceSpec: ...

    @property
    def chain(self) -> Sequence[BlockHash]:
        """Hashes of its full blocks; empty where prefixes are not cached."""
        ...

    @property
    def num_computed_tokens(self) -> int: ...


class PrefixReuse:
    """The part of a core that computes prompts which knows what blocks contain."""

    def __init__(self, pool: BlockPool, block_size: int, *, is_on: bool) -> None:
        self._pool = pool
        self._block_size = block_size
        self._is_on = is_on
        # Full blocks that running prompts will have computed, so that no other needs to.
        self._task_by_hash: dict[BlockHash, TaskId] = {}

    @property
    def num_in_work(self) -> int:
        """Full blocks that running prompts have still to compute."""
        return len(self._task_by_hash)

    def chain_of(self, sequence: SequenceSpec) -> tuple[BlockHash, ...]:
        """Hashes of the full blocks of the sequence."""
        if not self._is_on:
            return ()
        token_ids = sequence.prompt_token_ids + sequence.output_token_ids
        return extend_chain(chain_root(sequence.cache_salt), token_ids, self._block_size)

    def find(self, task: PromptInWork) -> tuple[BlockId, ...] | None:
        """The cached beginning of a prompt, or None while another computes what comes next."""
        if task.awaited is not None and task.awaited in self._task_by_hash:
            return None
        chain = self._shareable(task)
        shared = self._pool.longest_prefix(chain)
        next_hash = chain[len(shared)] if len(shared) < len(chain) else None
        task.awaited = next_hash if next_hash in self._task_by_hash else None
        return None if task.awaited is not None else shared

    def begin(self, task: PromptInWork) -> None:
        """The prompt runs from here on, behind what it shares."""
        for block_hash in task.chain[task.num_computed_tokens // self._block_size :]:
            self._task_by_hash.setdefault(block_hash, task.task_id)

    def computed(self, task: PromptInWork, num_tokens: int) -> None:
        """The next tokens are: what they complete can be shared from now on."""
        first = task.num_computed_tokens // self._block_size
        end = (task.num_computed_tokens + num_tokens) // self._block_size
        hashes = task.chain[first:end]
        if not hashes:
            return
        blocks = self._pool.blocks_of(task.task_id)[first : first + len(hashes)]
        for block_id, block_hash in zip(blocks, hashes, strict=True):
            self._pool.register(block_id, block_hash)
        self._drop(task, hashes)

    def end(self, task: PromptInWork) -> None:
        """The prompt runs no more: what it has not computed, others have to."""
        self._drop(task, task.chain[task.num_computed_tokens // self._block_size :])

    def news(self) -> list[WorkerAction]:
        """What became shareable, or ceased to be, since the last call."""
        changes = self._pool.take_prefix_changes()
        return [] if changes is None else [TellPrefixes(changes)]

    def _shareable(self, task: PromptInWork) -> Sequence[BlockHash]:
        # Never all tokens: the last one is computed for its logits. Where the logits of every
        # prompt token are wanted, everything is.
        if task.sequence.needs_prompt_logits:
            return ()
        return task.chain[: (task.sequence.num_tokens - 1) // self._block_size]

    def _drop(self, task: PromptInWork, hashes: Sequence[BlockHash]) -> None:
        for block_hash in hashes:
            if self._task_by_hash.get(block_hash) == task.task_id:
                del self._task_by_hash[block_hash]
