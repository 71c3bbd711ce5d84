"""A worker's end of the routers' streams, over real gRPC in one process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from runtime.grpc_server import ServerOptions, build_server
from runtime.testing import captured_log
from runtime.wire import (
    HeartbeatAnswer,
    ReportBatch,
    RouterHello,
    decode_response,
    encode_admission,
    encode_commands,
    encode_peer,
    encode_router_hello,
)
from scheduling.batch_time_online import PassTimeError
from scheduling.ids import Incarnation, RouterId, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    PROTOCOL_VERSION,
    Admission,
    CancelTask,
    PrefillStarted,
    SetAdmission,
    TaskFailed,
    TaskReleased,
    WorkerHello,
    WorkerLoad,
)
from scheduling.prefix_chain import PrefixKey
from scheduling.prefix_index import PrefixChanges
from scheduling.worker_events import (
    CommandArrived,
    SendReport,
    SessionId,
    SessionLost,
    WorkerEvent,
)
from tandemserve.internal.v1 import worker_pb2, worker_pb2_grpc
from worker.session import SERVICE_NAME, WorkerSessions

PATIENCE_S = 20.0
HELLO = WorkerHello(
    PROTOCOL_VERSION, WorkerId("decode-0"), Incarnation(7), "decode", 64, 16, 4, "c", "m"
)
TASK = TaskId("r/0~1")
# Only asked to abort a call, which does not happen where it is given.
NO_CONTEXT: Any = None


@dataclass
class Office:
    """A worker's sessions behind a real server, and what they posted to the engine."""

    address: str
    sessions: WorkerSessions = field(init=False)
    posted: list[WorkerEvent] = field(default_factory=list)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    peers: list[KvExport] = field(default_factory=list)

    def post(self, event: WorkerEvent) -> None:
        self.posted.append(event)
        self.news.set()

    async def until_posted(self, event: WorkerEvent) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while event not in self.posted:
                self.news.clear()
                await self.news.wait()

    async def until_no_session(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while self.sessions.num_sessions:
                self.news.clear()
                await self.news.wait()


@asynccontextmanager
async def office(load: WorkerLoad | None = None) -> AsyncIterator[Office]:
    bound = build_server(ServerOptions("127.0.0.1", 0), [])
    place = Office(f"127.0.0.1:{bound.port}")
    place.sessions = sessions = WorkerSessions(HELLO, place.post, place.peers.append, load=load)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(sessions, bound.server)
    await bound.start()
    try:
        yield place
    finally:
        sessions.end_all()
        await bound.stop(1.0)


def hello_of(router: str = "router-0", **fields: Any) -> Any:
    values: dict[str, Any] = {
        "protocol_version": PROTOCOL_VERSION,
        "router_incarnation": Incarnation(1),
        "worker_incarnation": Incarnation(7),
    }
    return encode_router_hello(RouterHello(router_id=RouterId(router), **(values | fields)))


@asynccontextmanager
async def dialled(place: Office, first: Any) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(place.address) as channel:
        call: Any = worker_pb2_grpc.WorkerServiceStub(channel).Session()
        await call.write(first)
        try:
            yield call
        finally:
            call.cancel()


async def read(call: Any) -> WorkerHello | ReportBatch | HeartbeatAnswer:
    return decode_response(await asyncio.wait_for(call.read(), PATIENCE_S))


async def status_of(call: Any) -> grpc.StatusCode:
    async with asyncio.timeout(PATIENCE_S):
        while await call.read() is not grpc.aio.EOF:
            pass
        code: grpc.StatusCode = await call.code()
    return code


async def refusal_of(place: Office, first: Any) -> grpc.StatusCode:
    async with dialled(place, first) as call:
        try:
            return await status_of(call)
        except grpc.aio.AioRpcError as error:
            return error.code()


async def test_a_router_is_greeted_with_who_the_worker_is_and_how_full() -> None:
    async with office() as place, dialled(place, hello_of()) as call:
        assert await read(call) == HELLO
        assert await read(call) == ReportBatch((), WorkerLoad(64, 0, 0, 0))


async def test_a_router_hears_of_the_swap_space_of_a_worker_that_has_done_nothing_yet() -> None:
    idle = WorkerLoad(64, 0, 0, 0, num_swap_blocks=8, num_free_swap_blocks=8)
    async with office(idle) as place, dialled(place, hello_of()) as call:
        assert await read(call) == HELLO
        assert await read(call) == ReportBatch((), idle)


async def test_commands_go_to_the_engine_and_the_end_of_the_stream_ends_its_tasks() -> None:
    async with office() as place:
        async with dialled(place, hello_of()) as call:
            await read(call)
            await call.write(encode_commands([CancelTask(TASK, "test")]))
            await place.until_posted(CommandArrived(SessionId(1), CancelTask(TASK, "test")))
            await call.done_writing()
            assert await status_of(call) is grpc.StatusCode.OK
        await place.until_posted(SessionLost(SessionId(1)))
        assert place.sessions.num_sessions == 0


async def test_a_pool_that_is_announced_is_prepared_before_the_command_behind_it() -> None:
    pool = KvExport("loopback", "a", 8, 64, WorkerId("decode-1"), Incarnation(2), "h")
    async with office() as place, dialled(place, hello_of()) as call:
        await read(call)
        await call.write(encode_peer(pool))
        await call.write(encode_commands([CancelTask(TASK, "test")]))
        await place.until_posted(CommandArrived(SessionId(1), CancelTask(TASK, "test")))
        assert place.peers == [pool]


async def test_a_wrong_hello_is_refused_with_the_status_that_says_why() -> None:
    async with office() as place:
        other_life = hello_of(worker_incarnation=6)
        other_protocol = hello_of(protocol_version=PROTOCOL_VERSION + 1)
        no_hello = encode_commands([CancelTask(TASK, "test")])
        empty = worker_pb2.SessionRequest()
        assert await refusal_of(place, other_life) is grpc.StatusCode.FAILED_PRECONDITION
        assert await refusal_of(place, other_protocol) is grpc.StatusCode.FAILED_PRECONDITION
        assert await refusal_of(place, no_hello) is grpc.StatusCode.INVALID_ARGUMENT
        assert await refusal_of(place, empty) is grpc.StatusCode.INVALID_ARGUMENT
        assert place.sessions.num_sessions == 0
        assert place.posted == []


async def test_a_bad_frame_ends_the_session_and_its_tasks() -> None:
    async with office() as place, dialled(place, hello_of()) as call:
        await read(call)
        await call.write(worker_pb2.SessionRequest())
        await place.until_posted(SessionLost(SessionId(1)))


@pytest.mark.parametrize("frame", [b"", b"\xff\xff"])
async def test_what_is_no_frame_ends_the_session_and_its_status_says_so(frame: bytes) -> None:
    async with office() as place, grpc.aio.insecure_channel(place.address) as channel:
        call: Any = channel.stream_stream(f"/{SERVICE_NAME}/Session")()
        with captured_log() as log:
            await call.write(hello_of().SerializeToString())
            await asyncio.wait_for(call.read(), PATIENCE_S)
            await call.write(frame)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await status_of(call)
            await place.until_no_session()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert log.events.count("bad_command_frame") == 1
        assert "Traceback" not in log.stream.getvalue()


async def test_a_late_frame_of_a_session_that_was_replaced_begins_nothing() -> None:
    """Its writer is stuck in a frame that nobody takes, so its reader is still there."""
    async with office() as place:
        frames: asyncio.Queue[Any] = asyncio.Queue()

        async def late_frames() -> AsyncIterator[Any]:
            yield hello_of()
            yield await frames.get()

        stuck: Any = place.sessions.Session(late_frames(), NO_CONTEXT)
        await anext(stuck)
        async with dialled(place, hello_of()) as call:
            await read(call)
            assert place.posted == [SessionLost(SessionId(1))]
            frames.put_nowait(encode_commands([CancelTask(TASK, "late")]))
            await call.write(encode_commands([CancelTask(TASK, "timely")]))
            await place.until_posted(CommandArrived(SessionId(2), CancelTask(TASK, "timely")))
            assert len(place.posted) == 2
        await stuck.aclose()


async def test_reports_go_to_the_session_that_owns_the_task() -> None:
    async with office() as place, dialled(place, hello_of("a")) as a:
        await read(a)
        await read(a)
        async with dialled(place, hello_of("b")) as b:
            await read(b)
            await read(b)
            load = WorkerLoad(60, 1, 0, 0)
            place.sessions.deliver([SendReport(SessionId(2), PrefillStarted(TASK))], load)
            assert await read(b) == ReportBatch((PrefillStarted(TASK),), load)
            # The other one has no task here, yet learns what is left.
            assert await read(a) == ReportBatch((), load)


async def test_what_changes_seldom_is_told_to_each_router_once() -> None:
    async with office() as place, dialled(place, hello_of("a")) as call:
        await read(call)
        await read(call)
        error = PassTimeError(64, 0.1, 0.2)
        load = WorkerLoad(60, 1, 0, 0, pass_time_error=error)
        for expected in (error, None):
            place.sessions.deliver([SendReport(SessionId(1), PrefillStarted(TASK))], load)
            frame = await read(call)
            assert isinstance(frame, ReportBatch)
            assert frame.load.pass_time_error == expected
        async with dialled(place, hello_of("b")) as late:
            await read(late)
            frame = await read(late)
            assert isinstance(frame, ReportBatch)
            assert frame.load.pass_time_error == error


async def test_a_router_that_connects_again_ends_what_its_broken_session_left_behind() -> None:
    """Even where a frame for the old one is stuck in a connection that nobody reads."""
    async with office() as place, dialled(place, hello_of()) as old:
        await read(old)
        await flood(place, 3000)
        async with dialled(place, hello_of()) as new:
            assert await read(new) == HELLO
            await place.until_posted(SessionLost(SessionId(1)))
            assert place.sessions.num_sessions == 1


async def test_a_dial_that_lay_in_the_socket_does_not_end_a_session_opened_after_it() -> None:
    """A worker that stood still reads the dials of that time late, and in any order."""
    present: dict[str, Any] = {"router_incarnation": 5, "session_number": 3}
    earlier_session: dict[str, Any] = {"router_incarnation": 5, "session_number": 2}
    earlier_life: dict[str, Any] = {"router_incarnation": 4, "session_number": 9}
    later_life: dict[str, Any] = {"router_incarnation": 6, "session_number": 1}
    async with office() as place, dialled(place, hello_of(**present)) as call:
        assert await read(call) == HELLO
        for stale in (earlier_session, earlier_life):
            assert await refusal_of(place, hello_of(**stale)) is grpc.StatusCode.ABORTED
        assert place.sessions.num_sessions == 1
        await call.write(encode_commands([CancelTask(TASK, "test")]))
        await place.until_posted(CommandArrived(SessionId(1), CancelTask(TASK, "test")))
        # Its tasks go on; of another router it is not known what came first.
        async with dialled(place, hello_of("router-1", **earlier_life)) as other:
            assert await read(other) == HELLO
        assert SessionLost(SessionId(1)) not in place.posted
        async with dialled(place, hello_of(**later_life)) as new:
            assert await read(new) == HELLO
            await place.until_posted(SessionLost(SessionId(1)))


async def test_a_draining_worker_tells_every_router_and_goes_on() -> None:
    async with office() as place, dialled(place, hello_of("a")) as call:
        await read(call)
        await read(call)
        place.sessions.drain()
        assert await read(call) == ReportBatch((), WorkerLoad(64, 0, 0, 0, is_draining=True))
        place.sessions.deliver(
            [SendReport(SessionId(1), TaskReleased(TASK))], WorkerLoad(64, 0, 0, 0)
        )
        frame = ReportBatch((TaskReleased(TASK),), WorkerLoad(64, 0, 0, 0, is_draining=True))
        assert await read(call) == frame
        async with dialled(place, hello_of("b")) as late:
            assert await read(late) == HELLO
            assert await read(late) == ReportBatch((), WorkerLoad(64, 0, 0, 0, is_draining=True))


async def flood(place: Office, num_frames: int) -> None:
    report = SendReport(SessionId(1), TaskFailed(TASK, "internal", "x" * 4096))
    for _ in range(num_frames):
        place.sessions.deliver([report], WorkerLoad(64, 0, 0, 0))
    await asyncio.sleep(0)


async def test_a_router_that_does_not_read_is_cut_off() -> None:
    async with office() as place, dialled(place, hello_of()) as call:
        await read(call)
        await flood(place, 5000)
        assert SessionLost(SessionId(1)) in place.posted  # though nobody takes its frames
        assert await refused_while_reading(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
        await place.until_posted(SessionLost(SessionId(1)))


async def refused_while_reading(call: Any) -> grpc.StatusCode:
    try:
        return await status_of(call)
    except grpc.aio.AioRpcError as error:
        return error.code()


async def test_a_router_that_leaves_while_a_frame_waits_for_it_leaves_nothing_behind() -> None:
    async with office() as place:
        async with dialled(place, hello_of()) as call:
            await read(call)
            await flood(place, 3000)
        await place.until_posted(SessionLost(SessionId(1)))
        await place.until_no_session()


async def test_a_worker_that_leaves_closes_every_stream_in_order() -> None:
    async with office() as place, dialled(place, hello_of()) as call:
        await read(call)
        place.sessions.end_all()
        assert await status_of(call) is grpc.StatusCode.OK
        assert await refusal_of(place, hello_of("b")) is grpc.StatusCode.FAILED_PRECONDITION


async def test_cached_prefixes_go_to_every_router_with_the_next_frame() -> None:
    keys = (PrefixKey(1), PrefixKey(2))
    async with office() as place, dialled(place, hello_of("router-0")) as early:
        for _ in range(2):
            await read(early)  # hello, and the first load
        place.sessions.deliver_prefixes(PrefixChanges(added=keys))
        report = PrefillStarted(TASK)
        place.sessions.deliver([SendReport(SessionId(1), report)], WorkerLoad(64, 0, 0, 0))
        batch = await read(early)
        assert isinstance(batch, ReportBatch)
        assert (batch.reports, batch.prefixes) == ((report,), PrefixChanges(keys, (), True))
        place.sessions.deliver_prefixes(PrefixChanges(removed=keys[:1]))
        batch = await read(early)
        assert isinstance(batch, ReportBatch)
        assert batch.prefixes == PrefixChanges(removed=keys[:1]), "without any report, too"
        async with dialled(place, hello_of("router-1")) as late:
            await read(late)
            batch = await read(late)
            assert isinstance(batch, ReportBatch)
            assert batch.prefixes == PrefixChanges(keys[1:], (), True)


async def test_a_cordon_is_told_to_every_router_and_to_those_that_come_later() -> None:
    async with office() as place, dialled(place, hello_of("one")) as one:
        async with dialled(place, hello_of("two")) as two:
            for call in (one, two):
                assert isinstance(await read(call), WorkerHello)
                await read(call)
            await one.write(encode_admission(SetAdmission(Admission.CORDONED)))
            for call in (one, two):
                batch = await read(call)
                assert isinstance(batch, ReportBatch)
                assert batch.load.admission is Admission.CORDONED
        # The engine knows nothing of it.
        place.sessions.deliver([], WorkerLoad(60, 1, 0, 0, num_tasks=1))
        batch = await read(one)
        assert isinstance(batch, ReportBatch)
        assert (batch.load.num_tasks, batch.load.admission) == (1, Admission.CORDONED)
        async with dialled(place, hello_of("three")) as three:
            hello = await read(three)
            assert isinstance(hello, WorkerHello)
            assert hello.admission is Admission.CORDONED
            await three.write(encode_admission(SetAdmission(Admission.OPEN)))
            batch = await read(one)
            assert isinstance(batch, ReportBatch)
            assert batch.load.admission is Admission.OPEN
