"""Fake workers in one process: they compute nothing and speak the real protocol, cheaply.

    python -m benchmarks.router_load.testing --redis URL --cluster NAME --model DIR [--pace-ms 10]

One prefill and one decode worker, registered like real ones. Both answer at once, or, with a pace,
the decode worker emits one token of every running sequence each time, all of them in one frame.
"""

import argparse
import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import grpc

from cluster.ledger import Shares, WorkerLife
from cluster.membership import WorkerRecord
from cluster.process_identity import this_process
from cluster.redis_connection import RedisConnection, connect
from cluster.redis_ledger import RedisLedger
from cluster.redis_membership import RedisMembership
from cluster.registration import Registration
from engine.model_folder import model_fingerprint
from runtime.clock import wall_time_ns
from runtime.grpc_server import ServerOptions, build_server
from runtime.wire import (
    Heartbeat,
    HeartbeatAnswer,
    RouterHello,
    decode_request,
    encode_heartbeat_answer,
    encode_reports,
    encode_worker_hello,
)
from runtime.wire.values import load_to_proto
from scheduling.ids import BlockId, Generation, Incarnation, TaskId, WorkerId
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
    StartDecode,
    StartPrefill,
    TaskReleased,
    TokensEmitted,
    WorkerHello,
    WorkerLoad,
)
from tandemserve.internal.v1 import worker_pb2 as pb

SERVICE = "tandemserve.internal.v1.WorkerService"
NUM_BLOCKS, BLOCK_SIZE, BLOCK_BYTES = 1_000_000, 16, 4096
TOKEN_ID, TEXT = 5, " the"
Role = Literal["prefill", "decode"]


@dataclass(slots=True)
class _Answer:
    """What is left of one sequence, and the bytes that all its reports begin with."""

    head: bytes
    next_index: int
    max_tokens: int


@dataclass(slots=True)
class FakeWorker:
    """One role for one router at a time: what it has been told, and what it will say next."""

    role: Role
    worker_id: WorkerId
    incarnation: Incarnation
    # Nothing is ever answered: what the router accepts stays in its queue.
    is_silent: bool = False
    reports: list[Report] = field(default_factory=list)
    running: dict[TaskId, _Answer] = field(default_factory=dict)
    # Prompts whose KV "moves" as soon as the target is known.
    computed: set[TaskId] = field(default_factory=set)
    # Signs of life that routers wait for.
    heartbeats: list[int] = field(default_factory=list)
    # As the router says of itself.
    has_openings: bool = False
    has_work: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def export(self) -> KvExport:
        """A pool that nobody writes into."""
        return KvExport(
            "shared_memory", "none", NUM_BLOCKS, BLOCK_BYTES, self.worker_id, self.incarnation, "h"
        )

    def hello(self, fingerprint: str) -> WorkerHello:
        """What the router is told first."""
        return WorkerHello(
            protocol_version=PROTOCOL_VERSION,
            worker_id=self.worker_id,
            incarnation=self.incarnation,
            role=self.role,
            num_blocks=NUM_BLOCKS,
            block_size=BLOCK_SIZE,
            max_num_seqs=4096,
            compatibility="fake",
            model_fingerprint=fingerprint,
            export=self.export if self.role == "decode" else None,
        )

    def take(self, command: Command) -> None:
        """Begin what a router asked for."""
        if self.is_silent:
            return
        task_id = command.task_id
        match command:
            case StartPrefill():
                self._prefill(command)
            case PushTo() if task_id in self.computed:
                self.computed.discard(task_id)
                moved = KvPushed(task_id, len(command.target.block_ids), 0, 0.0, "shared_memory")
                self.reports += [moved, TaskReleased(task_id)]
            case AdmitGeneration():
                blocks = tuple(BlockId(i) for i in range(command.num_kv_blocks))
                generations = (Generation(1),) * len(blocks)
                target = KvTarget(command.transfer_id, self.export, blocks, generations)
                self.reports.append(BlocksGranted(task_id, target))
                last = command.sequence.stop.max_tokens
                self.running[task_id] = _Answer(_head(task_id), last, last)
            case StartDecode() if (answer := self.running.get(task_id)) is not None:
                answer.next_index = len(command.output_token_ids)
                self.reports.append(DecodeStarted(task_id))
            case CancelTask():
                self.running.pop(task_id, None)
                self.computed.discard(task_id)
                self.reports.append(TaskReleased(task_id))
            case _:
                return
        self.has_work.set()

    def _prefill(self, command: StartPrefill) -> None:
        task_id = command.task_id
        index = len(command.sequence.output_token_ids)
        is_last = index + 1 >= command.sequence.stop.max_tokens
        reason = "length" if is_last else None
        token = TokensEmitted(task_id, index, (TOKEN_ID,), TEXT, finish_reason=reason)
        self.reports += [PrefillStarted(task_id), token]
        if is_last:
            self.reports.append(TaskReleased(task_id))
        else:
            self.computed.add(task_id)

    def frames(self) -> list[bytes]:
        """Everything that was reported since the last time, and signs of life."""
        answers = [encode_heartbeat_answer(HeartbeatAnswer(n, 0, 0.0)) for n in self.heartbeats]
        self.heartbeats.clear()
        reports, self.reports = self.reports, []
        frames = []
        if reports:
            frames = encode_reports(reports, self.load(), has_openings=self.has_openings)
        return [frame.SerializeToString() for frame in (*answers, *frames)]

    def load(self) -> WorkerLoad:
        """Never full."""
        num_running = len(self.running)
        return WorkerLoad(NUM_BLOCKS - 10 * num_running, num_running, 0, 0)

    def step(self) -> bytes | None:
        """One iteration: a token of every sequence that decodes, or None where none does."""
        tokens: list[bytes] = []
        over: list[TaskId] = []
        for task_id, answer in self.running.items():
            index = answer.next_index
            if index >= answer.max_tokens:
                continue  # admitted and not started
            answer.next_index = index + 1
            body = answer.head + b"\x10" + _varint(index) + _TAIL
            if answer.next_index == answer.max_tokens:
                over.append(task_id)
                body += b"\x32\x06length"
            tokens.append(b"\x0a" + _varint(len(body)) + body)
        if not tokens:
            return None
        for task_id in over:
            del self.running[task_id]
            self.reports.append(TaskReleased(task_id))
        load = load_to_proto(self.load()).SerializeToString()
        frame = b"".join(tokens) + b"\x1a" + _varint(len(load)) + load
        return b"\x12" + _varint(len(frame)) + frame


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _head(task_id: TaskId) -> bytes:
    name = task_id.encode()
    return b"\x0a" + _varint(len(name)) + name


_TAIL = b"\x1a\x01" + bytes([TOKEN_ID]) + b"\x22" + bytes([len(TEXT)]) + TEXT.encode()


class FakeSessions:
    """WorkerService over ready-made bytes: one stream, as the real worker's."""

    def __init__(self, worker: FakeWorker, fingerprint: str, pace_s: float) -> None:
        self._worker = worker
        self._fingerprint = fingerprint
        self._pace_s = pace_s

    def handler(self) -> Any:
        """For `add_generic_rpc_handlers`."""
        session: Any = grpc.stream_stream_rpc_method_handler(
            self._session, request_deserializer=pb.SessionRequest.FromString
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Session": session})

    async def _session(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[bytes]:
        hello = decode_request(await anext(requests))
        if not isinstance(hello, RouterHello):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the first frame is no hello")
            return
        self._worker.has_openings = hello.reads_openings
        yield encode_worker_hello(self._worker.hello(self._fingerprint)).SerializeToString()
        reader = asyncio.create_task(self._read(requests))
        try:
            async for frame in self._iterations():
                yield frame
        finally:
            reader.cancel()
            self._worker.running.clear()

    async def _read(self, requests: AsyncIterator[Any]) -> None:
        async for request in requests:
            frame = decode_request(request)
            if isinstance(frame, Heartbeat):
                self._worker.heartbeats.append(frame.number)
                self._worker.has_work.set()
            elif isinstance(frame, tuple):
                for command in frame:
                    self._worker.take(command)

    async def _iterations(self) -> AsyncIterator[bytes]:
        worker, loop = self._worker, asyncio.get_running_loop()
        next_step_at_s = loop.time()
        while True:
            for frame in worker.frames():
                yield frame
            now = loop.time()
            if now >= next_step_at_s:
                # An iteration that is late is not made up for.
                next_step_at_s = max(next_step_at_s + self._pace_s, now)
                if (tokens := worker.step()) is not None:
                    yield tokens
                    await asyncio.sleep(0)  # commands are read even where gRPC never waits
                    continue
            worker.has_work.clear()
            if worker.reports or worker.heartbeats:
                continue
            timeout_s = max(0.0, next_step_at_s - now) if worker.running else None
            try:
                await asyncio.wait_for(worker.has_work.wait(), timeout_s)
            except TimeoutError:
                continue


async def start(
    role: Role, redis: RedisConnection, arguments: argparse.Namespace
) -> tuple[Any, Registration]:
    """Serve and register one fake worker; the caller keeps both alive."""
    membership = RedisMembership(redis, cluster=arguments.cluster)
    worker_id = WorkerId(f"{role}-0")
    life = await membership.next_incarnation(f"worker {worker_id}")
    worker = FakeWorker(role, worker_id, life, is_silent=arguments.silent)
    fingerprint = model_fingerprint(arguments.model)
    server = build_server(ServerOptions("127.0.0.1", 0), (SERVICE,))
    sessions = FakeSessions(worker, fingerprint, arguments.pace_ms / 1e3)
    server.server.add_generic_rpc_handlers((sessions.handler(),))
    await server.start()
    ledger = RedisLedger(redis, cluster=arguments.cluster)
    await ledger.set_capacity(WorkerLife(worker_id, life), NUM_BLOCKS, Shares())
    record = WorkerRecord(
        worker_id=worker_id,
        incarnation=life,
        role=role,
        address=f"127.0.0.1:{server.port}",
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK_SIZE,
        compatibility="fake",
        model="fake",
        model_fingerprint=fingerprint,
        started_at_ns=wall_time_ns(),
        process=this_process(),
    )
    registration = Registration(membership, record, ttl_s=10.0)
    await registration.start()
    return server, registration


async def serve(arguments: argparse.Namespace) -> None:
    """Until the process is ended."""
    redis = await connect(arguments.redis)
    kept = [await start(role, redis, arguments) for role in ("prefill", "decode")]
    print("registered", *(server.port for server, _ in kept), flush=True)
    await asyncio.gather(*(registration.wait_lost() for _, registration in kept))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis", required=True, help="URL of the cluster's server")
    parser.add_argument("--cluster", default="tandem")
    parser.add_argument("--model", type=Path, required=True, help="folder that the router serves")
    parser.add_argument("--pace-ms", type=float, default=0.0, help="between two iterations")
    parser.add_argument("--silent", action="store_true", help="answer nothing")
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
