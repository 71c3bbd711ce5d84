"""Router and worker notice each other's silence, whichever direction of the session hangs."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import pytest

from router.worker_link import LinkEvents, LinkSettings, WorkerLink
from runtime.clock import ManualClock, MonotonicClock
from runtime.health import LIVENESS, HealthBoard
from runtime.stalling_proxy_testing import FakeBadNetwork, bad_network_to
from scheduling.ids import Incarnation, RouterId, WorkerId
from scheduling.messages import PROTOCOL_VERSION, WorkerHello
from scheduling.worker_events import SessionLost, WorkerEvent
from tandemserve.internal.v1 import worker_pb2_grpc
from worker.engine_pulse import EnginePulse, Pulse
from worker.session import SERVICE_NAME, WorkerSessions
from worker.watchdog import LOOK_INTERVAL_S, EngineWatch, StallSettings, Watchdog

PATIENCE_S = 20.0
HELLO = WorkerHello(
    PROTOCOL_VERSION, WorkerId("decode-0"), Incarnation(7), "decode", 64, 16, 4, "c", "m"
)
# Well above what a busy machine keeps a process waiting, well below the patience.
LIMIT_S = 1.0


@dataclass
class Pair:
    """A worker's sessions and watchdog, a router's link, and the network between them."""

    sessions: WorkerSessions
    network: FakeBadNetwork
    pulse: EnginePulse
    health: HealthBoard
    watchdog: Watchdog
    posted: list[WorkerEvent]
    # Set whenever either side connects or loses the other.
    news: asyncio.Event
    connected: list[WorkerHello] = field(default_factory=list)
    lost: list[WorkerId] = field(default_factory=list)
    link: WorkerLink = field(init=False)

    def dial(self) -> None:
        settings = LinkSettings(
            RouterId("router-0"),
            Incarnation(1),
            "m",
            connect_timeout_s=PATIENCE_S,
            max_message_bytes=1 << 20,
            heartbeat_interval_s=LIMIT_S / 5,
            heartbeat_timeout_s=LIMIT_S,
        )
        events = LinkEvents(
            connected=self.note_connected,
            reports=lambda worker_id, batch: None,
            lost=self.note_lost,
        )
        address = f"127.0.0.1:{self.network.port}"
        self.link = WorkerLink(
            HELLO.worker_id, HELLO.incarnation, "decode", address, settings, events
        )

    def note_connected(self, hello: WorkerHello) -> None:
        self.connected.append(hello)
        self.news.set()

    def note_lost(self, worker_id: WorkerId, life: Incarnation) -> None:
        self.lost.append(worker_id)
        self.news.set()

    async def until(self, is_so: Callable[[], object], within_s: float = PATIENCE_S) -> None:
        async with asyncio.timeout(within_s):
            while not is_so():
                self.news.clear()
                await self.news.wait()

    def num_sessions_lost(self) -> int:
        return sum(isinstance(event, SessionLost) for event in self.posted)


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    posted: list[WorkerEvent] = []
    news = asyncio.Event()

    def post(event: WorkerEvent) -> None:
        posted.append(event)
        news.set()

    sessions = WorkerSessions(HELLO, post)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(sessions, server)
    health = HealthBoard((SERVICE_NAME,))
    health.set_ready(SERVICE_NAME, True)
    pulse = sessions.pulse
    # Turns of no tokens may take no time at all beyond the limit of the tests.
    watchdog = Watchdog(sessions, pulse, health, StallSettings(LIMIT_S, 0.0), MonotonicClock())
    await server.start()
    looking = asyncio.create_task(watchdog.run())
    try:
        async with bad_network_to("127.0.0.1", port) as network:
            both = Pair(sessions, network, pulse, health, watchdog, posted, news)
            both.dial()
            await both.until(lambda: both.connected)
            try:
                yield both
            finally:
                network.flow()
                await both.link.close()
    finally:
        looking.cancel()
        sessions.end_all()
        await server.stop(0)


async def test_an_answered_session_stays_open_for_longer_than_the_limit() -> None:
    async with pair() as both:
        with pytest.raises(TimeoutError):
            await both.until(lambda: both.lost or both.num_sessions_lost(), 2 * LIMIT_S)
        assert both.link.engine is not None
        assert both.link.engine.number > 2


async def to_worker(network: FakeBadNetwork) -> None:
    network.to_server.clear()


async def to_router(network: FakeBadNetwork) -> None:
    network.to_client.clear()


async def both_ways(network: FakeBadNetwork) -> None:
    network.to_server.clear()
    network.to_client.clear()


@pytest.mark.parametrize("hang", [to_worker, to_router, both_ways])
async def test_a_session_is_lost_on_both_sides_whichever_direction_hangs(
    hang: Callable[[FakeBadNetwork], Awaitable[None]],
) -> None:
    async with pair() as both:
        await hang(both.network)
        await both.until(lambda: both.lost and both.num_sessions_lost() == 1)
        assert both.sessions.num_sessions == 0
        both.network.flow()
        # What was held back belongs to the old session; a new one is opened and stays.
        await both.until(lambda: len(both.connected) >= 2 and both.sessions.num_sessions == 1)


async def test_a_stuck_engine_ends_every_session_until_it_goes_on() -> None:
    async with pair() as both:
        both.pulse.begin(0)
        await both.until(lambda: both.lost and both.watchdog.is_stuck)
        assert both.num_sessions_lost() == 1
        async with asyncio.timeout(PATIENCE_S):
            # The link is about to say why: no time passes, it only puts the broken call away.
            while "has not ended its turn" not in both.link.problem:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert not both.health.is_ready(SERVICE_NAME)
        assert not both.health.is_ready(LIVENESS)
        assert both.sessions.num_sessions == 0
        both.pulse.end()
        await both.until(lambda: len(both.connected) == 2)
        assert both.health.is_ready(SERVICE_NAME)
        assert both.health.is_ready(LIVENESS)


def watch_for(watch: EngineWatch, pulse: Pulse, seconds: float, begin_s: float) -> list[bool]:
    num_looks = int(seconds / LOOK_INTERVAL_S)
    return [watch.is_stuck(pulse, begin_s + n * LOOK_INTERVAL_S) for n in range(1, num_looks + 1)]


def test_a_long_turn_is_stuck_only_beyond_what_its_tokens_may_take() -> None:
    settings = StallSettings(base_s=10.0, per_token_s=1.0)
    short, long = Pulse(3, 1.0, 0), Pulse(3, 1.0, 50)
    assert watch_for(EngineWatch(settings, 0.0), short, 11.0, 0.0)[-1]
    assert not any(watch_for(EngineWatch(settings, 0.0), long, 60.0, 0.0))
    assert watch_for(EngineWatch(settings, 0.0), long, 61.0, 0.0)[-1]


def test_an_engine_that_waits_or_ends_its_turns_is_never_stuck() -> None:
    watch = EngineWatch(StallSettings(base_s=1.0, per_token_s=0.0), 0.0)
    assert not any(watch_for(watch, Pulse(3, 0.0, 0), 60.0, 0.0))
    assert not any(watch.is_stuck(Pulse(n, 0.9, 5), 60.0 + n / 4) for n in range(100))


def test_a_process_that_was_stopped_does_not_take_its_engine_for_stuck() -> None:
    watch = EngineWatch(StallSettings(base_s=30.0, per_token_s=0.0), 0.0)
    assert not watch.is_stuck(Pulse(3, 0.1, 4), 0.25)
    assert not watch.is_stuck(Pulse(3, 3600.0, 4), 3600.0)


def test_the_pulse_tells_of_the_present_turn_only() -> None:
    clock = ManualClock(100.0)
    pulse = EnginePulse(clock)
    assert pulse.now() == Pulse(0, 0.0, 0)
    pulse.begin()
    pulse.begin(num_tokens=7)
    clock.advance(2.0)
    assert pulse.now() == Pulse(0, 2.0, 7)
    pulse.end()
    assert pulse.now() == Pulse(1, 0.0, 0)
