"""Which blocks of a sequence need not travel: those that are here, or on their way for another.

Only tasks of one sender share what is on its way. That sender computes a prefix once, for the task
that came first, so its push is due by the time that the others are computed: nobody waits for a
prompt that some other worker has not even begun.
"""

from dataclasses import dataclass

from decode_worker.generation_task import GenerationTask
from scheduling.block_pool import BlockPool
from scheduling.ids import BlockId, TaskId
from scheduling.messages import AdmitGeneration
from scheduling.prefix_chain import BlockHash, chain_root, extend_chain
from scheduling.worker_events import TellPrefixes, WorkerAction


@dataclass(frozen=True, slots=True)
class _Arriving:
    block_id: BlockId
    task_id: TaskId
    source_worker_id: str


class PrefixSharing:
    """The part of the decode core that knows what blocks contain."""

    def __init__(self, pool: BlockPool, block_size: int, *, is_on: bool) -> None:
        self._pool = pool
        self._block_size = block_size
        self._is_on = is_on
        # Granted to a task and not known to have arrived.
        self._arriving_by_hash: dict[BlockHash, _Arriving] = {}
        # By the task whose transfer they wait for.
        self._waiting_by_task: dict[TaskId, dict[TaskId, GenerationTask]] = {}

    @property
    def num_arriving(self) -> int:
        """Full blocks that others could join."""
        return len(self._arriving_by_hash)

    def allocate(self, task: GenerationTask, command: AdmitGeneration) -> bool:
        """Give the task its blocks, shared ones first; False when there is no room."""
        chain = self._chain_of(command)
        present = self._pool.longest_prefix(chain)
        joined = self._joinable(chain[len(present) :], command.source_worker_id)
        shared = [*present, *(each.block_id for each in joined)]
        num_new = command.num_blocks - len(shared)
        taken = self._pool.allocate(task.task_id, num_new, shared)
        if taken is None:
            return False
        task.chain = list(chain)
        task.num_present, task.num_joined = len(present), len(joined)
        if self._is_on:
            task.next_full_at = (len(chain) + 1) * self._block_size + 1
        for each in joined:
            self._waiting_by_task.setdefault(each.task_id, {})[task.task_id] = task
        for block_hash, block_id in zip(chain[len(shared) :], taken, strict=False):
            arriving = _Arriving(block_id, task.task_id, command.source_worker_id)
            self._arriving_by_hash.setdefault(block_hash, arriving)
        return True

    def arrived(self, task: GenerationTask) -> None:
        """All its KV is here: others may share it, and nobody needs to wait for its transfer."""
        blocks = self._pool.blocks_of(task.task_id)
        for block_id, block_hash in zip(blocks, task.chain, strict=False):
            self._pool.register(block_id, block_hash)
        if task.num_tokens == task.next_full_at:
            # A prompt of full blocks: at admission, its last token was the newest.
            self.filled(task)
        self._forget(task)

    def abandon(self, task: GenerationTask) -> list[GenerationTask]:
        """Its transfer ends early; return the tasks that waited for blocks that may not come."""
        waiting = self._forget(task)
        return [each for each in waiting if not all(map(self._is_here, self._joined_of(each)))]

    def not_arrived(self, task: GenerationTask) -> tuple[BlockId, ...]:
        """Blocks granted to the task's own transfer that nobody has seen arrive."""
        granted = self._pool.blocks_of(task.task_id)[task.num_shared : task.num_kv_blocks]
        return tuple(block_id for block_id in granted if not self._is_here(block_id))

    def filled(self, task: GenerationTask) -> None:
        """The newest token filled a block: others may share it from now on."""
        number = len(task.chain)
        start = number * self._block_size
        parent = task.chain[-1] if task.chain else chain_root(task.sequence.cache_salt)
        token_ids = task.tokens_between(start, start + self._block_size)
        task.chain += extend_chain(parent, token_ids, self._block_size)
        task.next_full_at = start + 2 * self._block_size + 1
        self._pool.register(self._pool.blocks_of(task.task_id)[number], task.chain[number])

    def news(self) -> list[WorkerAction]:
        """What became shareable, or ceased to be, since the last call."""
        if not self._is_on:
            return []
        changes = self._pool.take_prefix_changes()
        return [] if changes is None else [TellPrefixes(changes)]

    def _chain_of(self, command: AdmitGeneration) -> tuple[BlockHash, ...]:
        if not self._is_on:
            return ()
        sequence = command.sequence
        # The newest token may have no KV yet; its block is complete later, if at all.
        token_ids = (sequence.prompt_token_ids + sequence.output_token_ids)[:-1]
        chain = extend_chain(chain_root(sequence.cache_salt), token_ids, self._block_size)
        return chain[: command.num_kv_blocks]

    def _joinable(self, chain: tuple[BlockHash, ...], source_worker_id: str) -> list[_Arriving]:
        joined: list[_Arriving] = []
        for block_hash in chain if source_worker_id else ():
            arriving = self._arriving_by_hash.get(block_hash)
            if arriving is None or arriving.source_worker_id != source_worker_id:
                break
            joined.append(arriving)
        return joined

    def _joined_of(self, task: GenerationTask) -> tuple[BlockId, ...]:
        return self._pool.blocks_of(task.task_id)[task.num_present : task.num_shared]

    def _is_here(self, block_id: BlockId) -> bool:
        return self._pool.is_shareable(block_id)

    def _forget(self, task: GenerationTask) -> list[GenerationTask]:
        """Neither does it wait for anybody any more, nor can anybody join it."""
        for block_hash in task.chain:
            arriving = self._arriving_by_hash.get(block_hash)
            if arriving is not None and arriving.task_id == task.task_id:
                del self._arriving_by_hash[block_hash]
        for other, waiting in list(self._waiting_by_task.items()):
            waiting.pop(task.task_id, None)
            if not waiting:
                del self._waiting_by_task[other]
        return list(self._waiting_by_task.pop(task.task_id, {}).values())
