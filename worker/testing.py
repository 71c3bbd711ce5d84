"""Fake workers that compute nothing: real sessions and registration, made-up tokens at any speed.

They show what a router does under loads that no engine of a test machine could serve.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.ledger import Shares, WorkerLife
from cluster.membership import WorkerRecord
from cluster.process_identity import this_process
from cluster.redis_connection import connect
from cluster.redis_ledger import RedisLedger
from cluster.redis_membership import RedisMembership
from cluster.registration import Registration
from engine.model_folder import model_fingerprint
from runtime.clock import wall_time_ns
from runtime.grpc_server import ServerOptions, build_server
from scheduling.ids import BlockId, Generation, TaskId, WorkerId
from scheduling.kv_export import KvExport, KvTarget
from scheduling.messages import (
    PROTOCOL_VERSION,
    AdmitGeneration,
    BlocksGranted,
    CancelTask,
    Command,
    DecodeStarted,
    KvPushed,
    PrefillStarted,
    PushTo,
    Report,
    SequenceSpec,
    StartDecode,
    StartPrefill,
    TaskReleased,
    TokensEmitted,
    WorkerHello,
    WorkerLoad,
)
from scheduling.worker_events import CommandArrived, SendReport, SessionId, SessionLost, WorkerEvent
from tandemserve.internal.v1 import worker_pb2_grpc
from worker.session import SERVICE_NAME, WorkerSessions

BLOCK_SIZE, NUM_BLOCKS, BLOCK_BYTES = 16, 1_000_000, 4096
TOKEN_ID = 5
_TTL_S = 600.0


@dataclass(slots=True)
class _Task:
    session_id: SessionId
    token_id: int = TOKEN_ID
    max_tokens: int = 0
    num_output: int = 0
    is_running: bool = False
    # None before somebody asked for the KV.
    num_pushed_blocks: int | None = None


@dataclass
class FakeWorker:
    """One worker; everything happens on the event loop of its maker."""

    worker_id: WorkerId
    # What each token says.
    text: str = "x"
    # New prompts are taken and not answered.
    holds_prompts: bool = False
    # Running answers get no tokens.
    holds_answers: bool = False
    max_message_bytes: int = 64 * 1024 * 1024
    # Every token of an answer, by what is asked.
    token_of: Callable[[SequenceSpec], int] = lambda _: TOKEN_ID
    sessions: WorkerSessions = field(init=False)
    export: KvExport = field(init=False)
    # How many tokens each running answer gets in one turn, and the pause after it.
    tokens_per_turn: int = 8
    pause_s: float = 0.005
    num_prompts: int = 0
    _task_by_id: dict[TaskId, _Task] = field(default_factory=dict)
    _outbox: list[SendReport] = field(default_factory=list)
    _has_work: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def role(self) -> str:
        """The beginning of the name."""
        return self.worker_id.partition("-")[0]

    @property
    def num_tasks(self) -> int:
        """Tasks that it knows."""
        return len(self._task_by_id)

    def let_go(self) -> None:
        """Go on with what was held, and hold nothing from now on."""
        self.holds_prompts = self.holds_answers = False
        self._has_work.set()
        for task_id, task in list(self._task_by_id.items()):
            if not task.is_running and self.role == "prefill":
                self._first_token(task_id, task)
        self._flush()

    def post(self, event: WorkerEvent) -> None:
        """What an engine's inbox takes."""
        match event:
            case CommandArrived(session_id, command):
                self._take(session_id, command)
                self._flush()
            case SessionLost(session_id):
                gone = [i for i, t in self._task_by_id.items() if t.session_id == session_id]
                for task_id in gone:
                    del self._task_by_id[task_id]

    async def emit(self) -> None:
        """Give every running answer its tokens, turn after turn, until cancelled."""
        while True:
            await self._has_work.wait()
            running = [(i, task) for i, task in self._task_by_id.items() if task.is_running]
            if self.role == "prefill" or self.holds_answers or not running:
                self._has_work.clear()
                continue
            for task_id, task in running:
                count = min(self.tokens_per_turn, task.max_tokens - task.num_output)
                self._tokens(task_id, task, count)
            self._flush()
            await asyncio.sleep(self.pause_s)

    def _take(self, session_id: SessionId, command: Command) -> None:
        task_id = command.task_id
        match command:
            case StartPrefill():
                self.num_prompts += 1
                spec = command.sequence
                token_id, num_output = self.token_of(spec), len(spec.output_token_ids)
                task = _Task(session_id, token_id, spec.stop.max_tokens, num_output)
                self._task_by_id[task_id] = task
                self._say(session_id, PrefillStarted(task_id))
                if not self.holds_prompts:
                    self._first_token(task_id, task)
            case PushTo():
                task = self._task_by_id[task_id]
                task.num_pushed_blocks = len(command.target.block_ids)
                if task.is_running:
                    self._push(task_id, task)
            case AdmitGeneration():
                spec = command.sequence
                task = _Task(session_id, self.token_of(spec), spec.stop.max_tokens)
                self._task_by_id[task_id] = task
                blocks = tuple(BlockId(number) for number in range(command.num_blocks))
                generations = tuple(Generation(1) for _ in blocks)
                target = KvTarget(command.transfer_id, self.export, blocks, generations)
                self._say(session_id, BlocksGranted(task_id, target))
            case StartDecode():
                task = self._task_by_id[task_id]
                task.num_output, task.is_running = len(command.output_token_ids), True
                self._say(session_id, DecodeStarted(task_id))
                self._has_work.set()
            case CancelTask():
                self._release(task_id)
            case _:
                pass  # growth is never asked for: the blocks are as made-up as the tokens

    def _first_token(self, task_id: TaskId, task: _Task) -> None:
        task.is_running = True
        self._tokens(task_id, task, 1)
        if task.num_pushed_blocks is not None and task_id in self._task_by_id:
            self._push(task_id, task)

    def _push(self, task_id: TaskId, task: _Task) -> None:
        assert task.num_pushed_blocks is not None
        size = task.num_pushed_blocks * BLOCK_BYTES
        pushed = KvPushed(task_id, task.num_pushed_blocks, size, 0.001, "fake")
        self._say(task.session_id, pushed)
        self._release(task_id)

    def _tokens(self, task_id: TaskId, task: _Task, count: int) -> None:
        first, task.num_output = task.num_output, task.num_output + count
        is_last = task.num_output >= task.max_tokens
        ids = (task.token_id,) * count
        finish = "length" if is_last else None
        report = TokensEmitted(task_id, first, ids, self.text * count, finish_reason=finish)
        self._say(task.session_id, report)
        if is_last:
            self._release(task_id)

    def _release(self, task_id: TaskId) -> None:
        task = self._task_by_id.pop(task_id, None)
        if task is not None:
            self._say(task.session_id, TaskReleased(task_id))

    def _say(self, session_id: SessionId, report: Report) -> None:
        self._outbox.append(SendReport(session_id, report))

    def _flush(self) -> None:
        reports, self._outbox = self._outbox, []
        load = WorkerLoad(NUM_BLOCKS, 0, 0, 0, num_tasks=len(self._task_by_id))
        self.sessions.deliver(reports, load)


@asynccontextmanager
async def fake_workers(
    redis_url: str, cluster: str, model: Path, *workers: FakeWorker
) -> AsyncIterator[None]:
    """Registered and served inside the block, by the running event loop."""
    redis = await connect(redis_url)
    membership, ledger = (
        RedisMembership(redis, cluster=cluster),
        RedisLedger(redis, cluster=cluster),
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(redis.close)
        for worker in workers:
            incarnation = await membership.next_incarnation(f"worker {worker.worker_id}")
            options = ServerOptions("127.0.0.1", 0, max_message_bytes=worker.max_message_bytes)
            server = build_server(options, (SERVICE_NAME,))
            worker.export = KvExport(
                "fake", "nowhere", NUM_BLOCKS, BLOCK_BYTES, worker.worker_id, incarnation, "here"
            )
            hello = WorkerHello(
                PROTOCOL_VERSION,
                worker.worker_id,
                incarnation,
                worker.role,
                NUM_BLOCKS,
                BLOCK_SIZE,
                1024,
                "fake",
                model_fingerprint(model),
                worker.export if worker.role == "decode" else None,
                max_message_bytes=worker.max_message_bytes,
            )
            worker.sessions = WorkerSessions(hello, worker.post)
            worker_pb2_grpc.add_WorkerServiceServicer_to_server(worker.sessions, server.server)
            await server.start()
            record = WorkerRecord(
                worker_id=worker.worker_id,
                incarnation=incarnation,
                role="decode" if worker.role == "decode" else "prefill",
                address=f"127.0.0.1:{server.port}",
                num_blocks=NUM_BLOCKS,
                block_size=BLOCK_SIZE,
                compatibility="fake",
                model="fake",
                model_fingerprint=hello.model_fingerprint,
                started_at_ns=wall_time_ns(),
                process=this_process(),
            )
            await ledger.set_capacity(
                WorkerLife(worker.worker_id, incarnation), NUM_BLOCKS, Shares(growth_reserve=0)
            )
            registration = Registration(membership, record, ttl_s=_TTL_S)
            await registration.start()
            emitter = asyncio.create_task(worker.emit(), name=f"{worker.worker_id} emits")
            stack.push_async_callback(server.stop, 0.5)
            stack.push_async_callback(registration.stop)
            stack.callback(worker.sessions.end_all)
            stack.callback(emitter.cancel)
        yield
