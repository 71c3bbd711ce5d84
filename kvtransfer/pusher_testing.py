"""For tests: a pusher in front of loopback receivers, and what became of its jobs."""

import itertools
import threading
from collections.abc import Callable

from kvtransfer.batches import PushSettings
from kvtransfer.lane import LaneSettings, PushJob, PushOutcome
from kvtransfer.loopback import LoopbackTransport
from kvtransfer.protocol import BlockMoves, KvReceiver
from kvtransfer.pusher import Pusher
from kvtransfer.testing import PATIENCE_S, FaultyTransport, patterned_pool
from runtime.clock import Clock, MonotonicClock

BLOCK_BYTES = 256
NUM_BLOCKS = 32


class Outcomes:
    """Collects callbacks and waits for them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.all: list[tuple[PushJob, PushOutcome]] = []
        self.threads: set[str] = set()
        self.must_fail_once = False

    def __call__(self, job: PushJob, outcome: PushOutcome) -> None:
        with self._changed:
            self.all.append((job, outcome))
            self.threads.add(threading.current_thread().name)
            self._changed.notify_all()
            if self.must_fail_once:
                self.must_fail_once = False
                raise ZeroDivisionError("a defect of the callback")

    def wait(self, count: int) -> list[PushOutcome]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.all) >= count, PATIENCE_S)
            return [outcome for _, outcome in self.all]


class PushingSide:
    """One pusher in front of loopback receivers."""

    def __init__(
        self,
        push_settings: PushSettings | None = None,
        clock: Clock | None = None,
        max_jobs_per_peer: int = 4,
        idle_check_s: float = 60.0,
        cancel_timeout_s: float = PATIENCE_S,
        retire_after_s: float = 60.0,
    ) -> None:
        self.transport = FaultyTransport(LoopbackTransport(push_settings))
        self.outcomes = Outcomes()
        self.source = patterned_pool(NUM_BLOCKS, BLOCK_BYTES, 5)
        self.pusher = Pusher(
            {"loopback": self.transport},
            memoryview(self.source),
            self.outcomes,
            LaneSettings(
                "prefill-0#1",
                BLOCK_BYTES,
                max_jobs_per_peer,
                idle_check_s,
                retire_after_s,
                cancel_timeout_s,
            ),
            clock or MonotonicClock(),
        )
        self._generations = itertools.count(1)

    def receiver(self, worker_id: str, incarnation: int = 1) -> KvReceiver:
        return self.transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, worker_id, incarnation)

    def job(
        self,
        receiver: KvReceiver,
        block_id: int = 0,
        transfer_id: str = "r/0",
        timeout_s: float = 60.0,
    ) -> PushJob:
        """A push of one block that the receiver grants now."""
        generation = next(self._generations)
        receiver.expect([block_id], [generation])
        moves = BlockMoves(transfer_id, (block_id,), (block_id,), (generation,))
        return PushJob(receiver.export(), moves, timeout_s)

    def hold_lane(self, receiver: KvReceiver, block_id: int = NUM_BLOCKS - 1) -> PushJob:
        """Occupy the lane's thread until `transport.release`."""
        worker_id = receiver.export().worker_id
        self.transport.hold(worker_id)
        job = self.job(receiver, block_id, "holds")
        self.pusher.submit(job)
        self.transport.wait_until_held(worker_id)
        return job


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_at_s = MonotonicClock().now() + PATIENCE_S
    while not condition():
        assert MonotonicClock().now() < deadline_at_s
