"""Blocks that one answer lends to another: when a guest may begin, what its host does meanwhile.

The router proposes a place; how the host stands when the guest begins is known only here. A host
whose head comes near a guest that still lives gets another block for that place of its table: as
blocks are asked for when an answer outgrows its prediction (decode_worker/growth.py). Whoever ends
first, no block changes its content: a guest inherits what its host leaves, and the router is told.
"""

from collections.abc import MutableMapping

from decode_worker.generation_task import GenerationTask, Stage
from scheduling.block_leases import BlocksInherited, LeaseKind
from scheduling.block_pool import BlockPool
from scheduling.ids import TaskId
from scheduling.kvc_embedding import embedding_fits
from scheduling.kvc_pipeline import Guest, GuestTask, HostView, PipelineRule, fits, host_view
from scheduling.messages import BlocksRefused
from scheduling.worker_events import ReplaceBlocks, SendReport, WorkerAction


class Lending:
    """The part of the decode core that knows hosts and guests."""

    def __init__(
        self, pool: BlockPool, block_size: int, task_by_id: MutableMapping[TaskId, GenerationTask]
    ) -> None:
        self._pool = pool
        self._block_size = block_size
        # The core's own: a guest that is refused leaves it.
        self._task_by_id = task_by_id
        self._rule = PipelineRule(block_size)
        self._reports: list[WorkerAction] = []
        self._changed: list[GenerationTask] = []
        # Guests that began, and those whose place was gone, since the start.
        self.num_begun = 0
        self.num_refused = 0
        # Blocks that hosts got instead of those that their guests still wrote.
        self.num_replaced = 0

    def is_waiting_for_host(self, task: GenerationTask) -> bool:
        """Its host is here and has not begun: it cannot lend yet."""
        if task.place is None:
            return False
        host = self._task_by_id.get(task.place.host_id)
        return host is not None and host.stage is Stage.PROMPT and host.slot is None

    def fits(self, task: GenerationTask) -> bool:
        """A guest that begins now would end in its place before its host's head arrives there."""
        place = task.place
        assert place is not None
        host = self._task_by_id.get(place.host_id)
        if host is None or host.slot is None:
            return False
        guest = Guest(task.task_id, place.host_id, place.first, place.num_blocks)
        # The newest token of an answer has no KV yet.
        is_answer = task.stage is Stage.HELD
        num_written = task.num_tokens - 1 if is_answer else task.sequence.num_tokens
        needs = GuestTask(num_written, task.num_blocks)
        view, num_response_tokens = self._view(host), place.num_response_tokens
        if place.kind is LeaseKind.EMBEDDING:
            return embedding_fits(view, self._block_size, guest, needs, num_response_tokens)
        return fits(view, self._rule, guest, needs, num_response_tokens)

    def borrow(self, task: GenerationTask) -> bool:
        """Put the place behind the task's own blocks; False, and nothing has changed, where its
        host cannot lend it. Cached blocks beyond the own ones leave the first of it unused."""
        place = task.place
        assert place is not None
        num_held = self._pool.num_blocks_of(task.task_id)
        surplus = max(0, num_held - task.num_blocks)
        if surplus < place.num_blocks:
            lent = self._pool.lend(
                place.host_id,
                task.task_id,
                place.first + surplus,
                place.num_blocks - surplus,
                place.kind,
            )
            if lent is None:
                return False
            self._changed.append(self._task_by_id[place.host_id])
        # What its host will write over is not for others to wait for.
        task.chain = task.chain[:num_held]
        self.num_begun += 1
        return True

    def refuse(self, task: GenerationTask) -> WorkerAction:
        """Its place is gone: the router has to find another, and nothing of it stays here."""
        del self._task_by_id[task.task_id]
        return self.refusal(task)

    def refusal(self, task: GenerationTask) -> WorkerAction:
        """Its place is gone; whether anything of it stays is the caller's to decide."""
        self.num_refused += 1
        refused = BlocksRefused(task.task_id, self._pool.num_free_blocks)
        return SendReport(task.session_id, refused)

    def next_lent(self, task: GenerationTask) -> int | None:
        """Where in its table, from its head on, a guest writes first; None without one."""
        if not self._pool.num_lent_blocks:
            return None
        head = (task.num_tokens - 1) // self._block_size
        positions = self._pool.lent_positions_of(task.task_id)
        return next((position for position in positions if position >= head), None)

    def replace(self, task: GenerationTask, position: int) -> list[WorkerAction]:
        """Its guest still lives there: give it a free block instead. There must be one."""
        heir_id = self._pool.heir_at(task.task_id, position)
        block_id = self._pool.replace_lent(task.task_id, position)
        assert block_id is not None
        self.num_replaced += 1
        if heir_id is not None:
            self._inherits(heir_id, 1)
        replaced = ReplaceBlocks(task.taken_slot, position, (block_id,))
        return [replaced, *self.take_reports()]

    def release(self, task: GenerationTask) -> None:
        """It lets go of all its blocks; its guests keep what they borrowed."""
        for heir_id, num_blocks in self._pool.num_inherited_from(task.task_id).items():
            self._inherits(heir_id, num_blocks)
        self._pool.release(task.task_id)

    def take_reports(self) -> list[WorkerAction]:
        """What routers are to be told since the last call."""
        reports, self._reports = self._reports, []
        return reports

    def take_changed(self) -> list[GenerationTask]:
        """Those that lent something since the last call."""
        changed, self._changed = self._changed, []
        return changed

    def _inherits(self, task_id: TaskId, num_blocks: int) -> None:
        heir = self._task_by_id[task_id]
        self._reports.append(SendReport(heir.session_id, BlocksInherited(task_id, num_blocks)))

    def _view(self, host: GenerationTask) -> HostView:
        return host_view(self._pool, host.task_id, self._block_size, self._num_written_tokens)

    def _num_written_tokens(self, task_id: TaskId) -> int:
        """As it stands, or, of a prompt, as it will stand when it is computed."""
        task = self._task_by_id[task_id]
        return task.num_tokens if task.stage is Stage.PROMPT else task.num_tokens - 1
