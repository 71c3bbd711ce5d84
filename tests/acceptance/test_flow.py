"""Many, slow, large and vanishing callers against one real router process; the workers are fake."""

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import pytest_asyncio

from deploy.local.child import ChildProcess
from deploy.local.port import reserve_port
from deploy.local.redis import make_run_folder, start_own
from deploy.local.settings import ROOT
from engine.bundled import bundled_model_path
from runtime.clock import MonotonicClock
from runtime.testing import end_now
from scheduling.ids import WorkerId
from tandemserve import AsyncClient, CanNeverFit, ContextTooLong, LimitExceeded, TandemError
from tandemserve.api.v1 import inference_pb2, inference_pb2_grpc
from worker.testing import FakeWorker, fake_workers

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

# Longer than anything here takes; reached only when something hangs.
PATIENCE_S = 240.0
MIB = 1024 * 1024
CONTEXT = 50_000_000
MAX_MESSAGE_BYTES = MIB // 2
Until = Callable[..., Awaitable[float]]


@dataclass
class Place:
    """A router process with one fake worker of each kind."""

    address: str
    router: ChildProcess
    prefill: FakeWorker
    decode: FakeWorker

    @property
    def process(self) -> psutil.Process:
        return psutil.Process(self.router.pid)

    @property
    def num_bytes(self) -> int:
        """Memory that the router has in use."""
        return int(self.process.memory_info().rss)

    def channel(self, **options: Any) -> grpc.aio.Channel:
        limits = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
            *options.items(),
        ]
        return grpc.aio.insecure_channel(self.address, options=limits)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with room for prompts of any size; a router reads no weights."""
    folder = tmp_path_factory.mktemp("model") / "long"
    shutil.copytree(bundled_model_path(), folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["max_position_embeddings"] = CONTEXT
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place(
    model: Path, tmp_path_factory: pytest.TempPathFactory, until: Until
) -> AsyncIterator[Place]:
    redis = await start_own(make_run_folder())
    log = tmp_path_factory.mktemp("logs") / "router.log"
    prefill, decode = FakeWorker(WorkerId("prefill-0")), FakeWorker(WorkerId("decode-0"))
    try:
        async with (
            fake_workers(redis.url, "flow", model, prefill, decode),
            router_process(redis.url, model, log) as (router, address),
        ):
            there = Place(address, router, prefill, decode)
            async with AsyncClient(address) as client:

                async def is_ready() -> bool:
                    assert router.is_running, log.read_text("utf-8")
                    try:
                        views = await client.admin.workers()
                    except Exception:
                        return False
                    return [view.state for view in views] == ["ready", "ready"]

                await until(is_ready)
            yield there
        told = log.read_text("utf-8")
        assert "Traceback" not in told, told[-4000:]
    finally:
        await redis.stop()


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def quick_workers(place: Place) -> AsyncIterator[None]:
    """What a test makes of the workers ends with it."""
    yield
    place.prefill.let_go()
    place.decode.text = "x"


@asynccontextmanager
async def router_process(
    redis_url: str, model: Path, log: Path, **settings: str
) -> AsyncIterator[tuple[ChildProcess, str]]:
    port = reserve_port("127.0.0.1", 0)
    values = {
        "port": str(port.port),
        "model": str(model),
        "redis_url": redis_url,
        "cluster_name": "flow",
        "max_prompt_queue": "20000",
        "max_message_bytes": str(MAX_MESSAGE_BYTES),
        "heartbeat_timeout_s": "120",
        "drain_timeout_s": "2",
    } | settings
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    environ = dict(os.environ, PYTHONPATH=str(ROOT))
    command = (sys.executable, "-P", "-m", "router", *flags)
    child = ChildProcess("router-0", command, environ, log)
    child.start()
    try:
        yield child, f"127.0.0.1:{port.port}"
        child.terminate()
        assert await child.wait_ended(PATIENCE_S)
        assert child.ended_well
    finally:
        child.kill()
        port.release()


def request_of(*token_ids: int, **fields: Any) -> inference_pb2.GenerateRequest:
    """By tokens; greedy and short unless told otherwise."""
    stop = inference_pb2.StopConditions(max_tokens=fields.pop("max_tokens", 2), ignore_eos=True)
    return inference_pb2.GenerateRequest(
        tokens=inference_pb2.TokenPrompt(ids=token_ids), stop=stop, **fields
    )


# A process of its own: the loop of the tests also plays the workers, and would measure itself.
PULSE = """
import json, sys, threading, time, grpc
from tandemserve.api.v1 import admin_pb2 as pb, admin_pb2_grpc
stub = admin_pb2_grpc.AdminServiceStub(grpc.insecure_channel(sys.argv[1]))
stub.GetStatus(pb.GetStatusRequest())
print("started", flush=True)
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
longest_s = 0.0
while not over.wait(0.002):
    began = time.monotonic()
    stub.GetStatus(pb.GetStatusRequest())
    longest_s = max(longest_s, time.monotonic() - began)
print(longest_s)
"""


class Pulse:
    """Asks the router for its status all the time: how long it was away at most."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.longest_s = 0.0

    async def __aenter__(self) -> "Pulse":
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", PULSE, self._place.address),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self.process.stdout is not None
        assert await self.process.stdout.readline() == b"started\n"
        return self

    async def __aexit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        if exc_type is not None:  # told as it is, above all Ctrl-C, which both of us got
            await end_now(self.process)
            return
        out, _ = await asyncio.wait_for(self.process.communicate(b""), PATIENCE_S)
        self.longest_s = float(out)


async def test_an_interrupted_pulse_tells_of_the_interruption_only(place: Place) -> None:
    async def interrupted() -> None:
        async with Pulse(place) as pulse:
            # As Ctrl-C does to every process of a terminal.
            os.kill(pulse.process.pid, signal.SIGINT)
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await interrupted()


async def test_a_prompt_too_large_for_a_message_is_refused_with_the_limit_and_nobody_suffers(
    place: Place,
) -> None:
    async with AsyncClient(place.address, max_retries=0) as client:
        bystander = client.stream([5, 6], max_tokens=2000, ignore_eos=True)
        await anext(bystander)
        # For the router's own limit gRPC answers, which knows no names of settings.
        with pytest.raises(LimitExceeded, match=rf"larger than max .*{MAX_MESSAGE_BYTES}"):
            await client.generate([1999] * (MIB // 3), max_tokens=2)
        # Small on the way in, too large on the way to a worker: a text, or a long answer.
        with pytest.raises(CanNeverFit, match="or raise max_message_bytes of the router and of"):
            await client.generate([1999] * (MIB // 8), max_tokens=MIB // 4)
        with pytest.raises(CanNeverFit, match="a message to a worker holds 241664"):
            await client.generate("a b " * (MIB // 16), max_tokens=MIB // 4)
        with pytest.raises(ContextTooLong, match=f"exceed the model's context of {CONTEXT}"):
            await client.generate([1] * 100, max_tokens=CONTEXT)
        assert len((await bystander.completion()).token_ids) == 2000
        answer = await client.generate([1999] * 240_000, max_tokens=2)
        assert len(answer.token_ids) == 2


async def test_large_prompts_leave_the_router_its_turns(place: Place) -> None:
    max_bursts, num_prompts, num_tokens = 8, 6, 200_000
    prompt = [1000 + i % 900 for i in range(num_tokens)]
    quiet_s, silences_s = [0.0], [PATIENCE_S]
    # Several threads share the interpreter with the loop, so it is slower than without the load. A
    # loop that is held up is so in every burst: one that the machine disturbed proves nothing.
    async with AsyncClient(place.address) as client:
        while min(silences_s) >= 0.5 + 5 * max(quiet_s):
            assert len(silences_s) <= max_bursts, (silences_s, quiet_s)
            async with Pulse(place) as pulse:
                await client.generate([5], max_tokens=400, ignore_eos=True)
            quiet_s.append(pulse.longest_s)
            async with Pulse(place) as pulse:
                calls = [client.generate(prompt, max_tokens=2) for _ in range(num_prompts)]
                await asyncio.gather(*calls)
            silences_s.append(pulse.longest_s)
    print(f"silences {silences_s}, without the load {quiet_s}")


async def test_two_thousand_idle_streams_cost_little_and_all_end_right(place: Place) -> None:
    num_streams = 2000
    place.prefill.holds_prompts = True
    before = place.num_bytes
    async with place.channel() as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        calls: list[Any] = []
        # In portions: gRPC gives up calls that no server has taken within 30 s.
        while len(calls) < num_streams:
            calls += [stub.Generate(request_of(5, 6, 7, max_tokens=3)) for _ in range(200)]
            firsts = asyncio.gather(*(call.read() for call in calls[-200:]))
            assert all(x.HasField("accepted") for x in await asyncio.wait_for(firsts, PATIENCE_S))
        per_stream = (place.num_bytes - before) / num_streams
        print(f"{per_stream / 1024:.1f} KiB for each waiting stream")
        assert per_stream < 100 * 1024
        place.prefill.let_go()
        totals = await asyncio.wait_for(asyncio.gather(*map(num_tokens_of, calls)), PATIENCE_S)
    assert totals == [3] * num_streams


async def num_tokens_of(call: Any) -> int:
    """Read to the end; it must be a good one."""
    total = 0
    while (response := await call.read()) is not grpc.aio.EOF:
        total += len(response.delta.token_ids)
    assert await call.code() is grpc.StatusCode.OK
    return total


async def test_ten_thousand_requests_of_a_client_that_vanishes_leave_nothing(
    place: Place, until: Until
) -> None:
    place.prefill.holds_prompts = True
    vanishing = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", VANISHING_CLIENT, place.address, "10000"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert vanishing.stdout is not None
    assert await asyncio.wait_for(vanishing.stdout.readline(), PATIENCE_S) == b"all sent\n"
    async with AsyncClient(place.address) as client:
        status = await client.admin.status()
        assert status.num_prompt_queued + status.num_prefilling == 10_000
        await end_now(vanishing)

        async def is_empty() -> bool:
            status = await client.admin.status()
            return (status.num_prompt_queued, status.num_prefilling) == (0, 0)

        await until(is_empty)
        await until(lambda: holds_nothing(place))
        place.prefill.let_go()
        assert len((await client.generate([5], max_tokens=7)).token_ids) == 7


# Several connections: one takes no more than max_concurrent_streams.
VANISHING_CLIENT = """
import sys, grpc, threading
from tandemserve.api.v1 import inference_pb2 as pb, inference_pb2_grpc
request = pb.GenerateRequest(tokens=pb.TokenPrompt(ids=[5, 6]))
calls, channels = [], []
for number in range(int(sys.argv[2])):
    if number % 2500 == 0:
        options = [("grpc.use_local_subchannel_pool", 1)]
        channels.append(grpc.insecure_channel(sys.argv[1], options))
        stub = inference_pb2_grpc.InferenceServiceStub(channels[-1])
    calls.append(stub.Generate(request))
    if len(calls) % 500 == 0:
        for call in calls[-500:]:
            next(call)
print("all sent", flush=True)
threading.Event().wait()
"""


async def holds_nothing(place: Place) -> bool:
    """No worker knows a task."""
    return place.prefill.num_tasks == place.decode.num_tasks == 0


async def test_two_hundred_stalled_readers_hold_nobody_up(place: Place, until: Until) -> None:
    place.decode.text = "x" * 100
    before = place.num_bytes
    stalled = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", STALLED_CLIENT, place.address, "200"),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )
    assert stalled.stdout is not None
    try:
        assert await asyncio.wait_for(stalled.stdout.readline(), PATIENCE_S) == b"stalled\n"
        stalled.send_signal(signal.SIGSTOP)
        async with AsyncClient(place.address) as client:
            began_at_s = MonotonicClock().now()
            for _ in range(20):
                answer = await client.generate([5, 6], max_tokens=50, timeout_s=PATIENCE_S)
                assert len(answer.token_ids) == 50
            took_s = MonotonicClock().now() - began_at_s
            # All answers are computed without being read, and hold no worker any more.
            await until(lambda: holds_nothing(place))
            kept = place.num_bytes - before
            print(f"20 answers beside 200 stalled readers: {took_s:.2f} s; {kept / MIB:.0f} MiB")
            # Of each of 2000 tokens of 200 answers: its 100 characters, and 200 bytes for the
            # objects that hold them (130 were seen, the buffers of the connection included).
            assert kept < 200 * 2000 * (100 + 200)
        stalled.send_signal(signal.SIGCONT)
        assert await asyncio.wait_for(stalled.stdout.readline(), PATIENCE_S) == b"[2000]\n"
    finally:
        await end_now(stalled)


STALLED_CLIENT = """
import sys, grpc
from tandemserve.api.v1 import inference_pb2 as pb, inference_pb2_grpc
options = [("grpc.max_receive_message_length", -1)]
stub = inference_pb2_grpc.InferenceServiceStub(grpc.insecure_channel(sys.argv[1], options))
stop = pb.StopConditions(max_tokens=2000, ignore_eos=True)
request = pb.GenerateRequest(tokens=pb.TokenPrompt(ids=[5, 6]), stop=stop)
calls = [stub.Generate(request) for _ in range(int(sys.argv[2]))]
firsts = [next(call) for call in calls]
print("stalled", flush=True)
totals = {sum(len(r.delta.token_ids) for r in call) for call in calls}
print(sorted(totals), flush=True)
"""


async def test_a_full_disk_for_logs_costs_lines_and_no_answers(
    model: Path, tmp_path: Path, until: Until
) -> None:
    redis = await start_own(make_run_folder())
    workers = (FakeWorker(WorkerId("prefill-0")), FakeWorker(WorkerId("decode-0")))
    try:
        async with (
            fake_workers(redis.url, "flow", model, *workers),
            router_process(redis.url, model, Path("/dev/full")) as (_, address),
            AsyncClient(address) as client,
        ):

            async def serves() -> bool:
                try:
                    return len((await client.generate([5], max_tokens=9)).token_ids) == 9
                except TandemError:
                    return False

            await until(serves)
            for _ in range(50):
                assert await serves()
    finally:
        await redis.stop()
