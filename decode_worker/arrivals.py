"""Tasks whose KV comes from a prefill worker, until all of it is here."""

from decode_worker.generation_task import GenerationTask, Stage
from decode_worker.prefix_sharing import PrefixSharing
from scheduling.block_pool import BlockPool
from scheduling.ids import TaskId
from scheduling.kv_export import KvExport, KvTarget
from scheduling.messages import (
    PREFIX_LOST,
    AdmitGeneration,
    BlocksGranted,
    BlocksRefused,
    DecodeStarted,
    TaskFailed,
)
from scheduling.worker_events import (
    AwaitKv,
    ExpectKv,
    RevokeKv,
    SendReport,
    SessionId,
    WorkerAction,
)


class Arrivals:
    """The part of the decode core that grants blocks to senders and takes them back."""

    def __init__(
        self,
        pool: BlockPool,
        sharing: PrefixSharing,
        export: KvExport,
        task_by_id: dict[TaskId, GenerationTask],
    ) -> None:
        self._pool = pool
        self._sharing = sharing
        self._export = export
        self._task_by_id = task_by_id

    def admit(
        self, session_id: SessionId, command: AdmitGeneration, now: float
    ) -> list[WorkerAction]:
        """Grant blocks, or refuse the task where there is no room."""
        task_id, known = command.task_id, self._task_by_id.get(command.task_id)
        if known is not None and known.session_id == session_id:
            return []  # a repeated command changes nothing
        task = GenerationTask(task_id, session_id, command.sequence, command.num_kv_blocks)
        task.arrived_at_s = now - command.age_s
        # Known to a session that broke: in quarantine, and gone when nobody writes into it.
        if known is not None or not self._sharing.allocate(task, command):
            refused = BlocksRefused(task_id, self._pool.num_free_blocks)
            return [SendReport(session_id, refused)]
        self._task_by_id[task_id] = task
        granted = self._pool.blocks_of(task_id)[task.num_shared : task.num_kv_blocks]
        generations = self._pool.generations_of(granted)
        target = KvTarget(command.transfer_id, self._export, granted, generations, task.num_shared)
        return [
            ExpectKv(granted, generations),
            SendReport(session_id, BlocksGranted(task_id, target)),
        ]

    def start(
        self, task: GenerationTask | None, output_token_ids: tuple[int, ...]
    ) -> list[WorkerAction]:
        """The prompt is computed: watch for the last blocks."""
        if task is None or task.stage is not Stage.ADMITTED:
            return []
        task.stage = Stage.ARRIVING
        task.output_token_ids = list(output_token_ids)
        blocks = self._pool.blocks_of(task.task_id)[task.num_present : task.num_kv_blocks]
        return [AwaitKv(task.task_id, blocks, self._pool.generations_of(blocks))]

    def arrived(self, task: GenerationTask, transport: str) -> list[WorkerAction]:
        """All of it is here."""
        task.stage = Stage.READY
        self._sharing.arrived(task)
        return [SendReport(task.session_id, DecodeStarted(task.task_id, transport))]

    def check_invariants(self) -> None:
        """Raise AssertionError where blocks are awaited that nobody sends."""
        stages = {task.stage for task in self._task_by_id.values()}
        is_arriving = bool(stages & {Stage.ADMITTED, Stage.ARRIVING})
        assert is_arriving or not self._sharing.num_arriving, "nobody sends these any more"

    def end(self, task: GenerationTask) -> list[WorkerAction]:
        """Its blocks will not all come: neither for itself nor for those that share them."""
        actions: list[WorkerAction] = []
        ending = [task]
        while ending:
            each = ending.pop()
            if each.stage is Stage.QUARANTINED:
                continue
            if each is not task:
                message = "the transfer of a prompt that begins alike ended; it was waited for"
                failed = TaskFailed(each.task_id, PREFIX_LOST, message)
                actions.append(SendReport(each.session_id, failed))
            each.stage = Stage.QUARANTINED
            actions.append(RevokeKv(each.task_id, self._sharing.not_arrived(each)))
            ending += self._sharing.abandon(each)
        return actions
