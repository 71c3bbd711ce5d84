"""Pushes to a worker of two ranks: one order, two ways, one answer."""

import queue
from collections.abc import Iterator

import pytest

from kvtransfer.lane import LaneSettings
from kvtransfer.loopback import LoopbackTransport
from kvtransfer.pusher import Pusher
from kvtransfer.slices import PoolSlices, export_of_rank, join_exports, pool_name
from kvtransfer.testing import FaultyTransport, patterned_pool
from runtime.clock import MonotonicClock
from scheduling.ids import BlockId, Generation, TaskId
from scheduling.kv_export import KvTarget
from scheduling.worker_events import CancelPush, Push, PushFinished, WorkerEvent
from worker.kv_push import KvPush
from worker.rank_transfer import PolledPushes

PATIENCE_S = 20.0
NUM_BLOCKS, UNIT_BYTES = 8, 64
FIRST, SECOND = pool_name("decode-0", 0), pool_name("decode-0", 1)


class Side:
    """A pool with both slices of every block, and a peer whose ranks have one each."""

    def __init__(self) -> None:
        self.posted: queue.SimpleQueue[WorkerEvent] = queue.SimpleQueue()
        self.transport = FaultyTransport(LoopbackTransport())
        self.source = patterned_pool(2 * NUM_BLOCKS, UNIT_BYTES, seed=1)
        self.receivers = [
            self.transport.create_receiver(NUM_BLOCKS, UNIT_BYTES, name, 1)
            for name in (FIRST, SECOND)
        ]
        self.export = join_exports(
            [
                export_of_rank(receiver.export(), PoolSlices.of_rank(rank, 2, 2))
                for rank, receiver in enumerate(self.receivers)
            ]
        )
        self.kv = KvPush(self.posted.put, PATIENCE_S, PoolSlices(0, 2, 2))
        settings = LaneSettings("prefill-0#1", UNIT_BYTES, max_jobs_per_peer=1)
        transports = {self.transport.name: self.transport}
        source = memoryview(self.source)
        self.pusher = Pusher(transports, source, self.kv.on_done, settings, MonotonicClock())
        self.kv.attach(self.pusher)

    def push(self, task: str, block: int, granted_by: tuple[int, ...] = (0, 1)) -> Push:
        """One block to the block of the same number; these ranks accept it."""
        for rank in granted_by:
            self.receivers[rank].expect((block,), (1,))
        target = KvTarget(f"{task}@d", self.export, (BlockId(block),), (Generation(1),))
        return Push(TaskId(task), target, 0, (BlockId(block),))

    def next_event(self) -> PushFinished:
        event = self.posted.get(timeout=PATIENCE_S)
        assert isinstance(event, PushFinished)
        return event

    def close(self) -> None:
        self.transport.release()
        assert self.pusher.close(PATIENCE_S)
        for receiver in self.receivers:
            receiver.close()


@pytest.fixture
def side() -> Iterator[Side]:
    place = Side()
    yield place
    place.close()


def test_a_push_is_told_once_and_when_every_rank_has_its_share(side: Side) -> None:
    side.transport.hold(SECOND)
    side.kv.perform(side.push("a", 3))
    side.transport.wait_until_held(SECOND)
    assert side.posted.empty()
    side.transport.release()
    event = side.next_event()
    assert (event.task_id, event.num_blocks, event.error) == ("a", 1, None)
    assert event.num_bytes == 2 * UNIT_BYTES
    for rank, receiver in enumerate(side.receivers):
        unit = 2 * 3 + rank
        theirs = bytes(receiver.buffer()[3 * UNIT_BYTES : 4 * UNIT_BYTES])
        assert theirs == bytes(side.source[unit * UNIT_BYTES : (unit + 1) * UNIT_BYTES])
    assert side.posted.empty()


def fill_second_rank(side: Side) -> None:
    """One push to it is under way, and one has the place in its queue; none to the first."""
    side.transport.hold(SECOND)
    side.kv.perform(side.push("running", 0))
    side.transport.wait_until_held(SECOND)
    side.kv.perform(side.push("queued", 1))


def require_refused_alone(side: Side, others: set[str]) -> None:
    """Every task is told once; of the refused one nothing went to the second rank."""
    side.kv.perform(side.push("behind", 3))
    clock = MonotonicClock()
    deadline_at_s = clock.now() + PATIENCE_S
    # A lane works in order: then the first rank's is past the refused one.
    while not side.receivers[0].poll([3], [1]).is_complete:
        side.kv.poll()
        assert clock.now() < deadline_at_s
    side.transport.release()
    told: dict[str, str | None] = {}
    while len(told) <= len(others):
        side.kv.poll()
        try:
            event = side.posted.get(timeout=0.01)
        except queue.Empty:
            assert clock.now() < deadline_at_s
            continue
        assert isinstance(event, PushFinished)
        assert event.task_id not in told
        told[event.task_id] = event.error
    assert {task for task, error in told.items() if error is None} == others
    assert told["refused"] is not None
    assert "generation" in told["refused"]
    assert side.receivers[1].poll([2], [1]).num_arrived == 0
    assert side.posted.empty()


def test_one_ranks_refusal_spares_the_others_what_is_held_back(side: Side) -> None:
    fill_second_rank(side)
    # The first rank does not know the grant, so what is kept back for the second is of no use.
    side.kv.perform(side.push("refused", 2, granted_by=(1,)))
    assert side.kv.is_polling
    require_refused_alone(side, others={"running", "queued", "behind"})
    assert not side.kv.is_polling


def test_one_ranks_refusal_cancels_what_waits_for_the_other(side: Side) -> None:
    side.transport.hold(SECOND)
    side.kv.perform(side.push("running", 0))
    side.transport.wait_until_held(SECOND)
    # In the queue of the second rank when the first refuses it.
    side.kv.perform(side.push("refused", 2, granted_by=(1,)))
    require_refused_alone(side, others={"running", "behind"})


def test_a_cancel_is_answered_once_for_both_ranks(side: Side) -> None:
    fill_second_rank(side)
    held = side.push("held", 2)
    side.kv.perform(held)
    side.kv.perform(CancelPush(held.task_id, held.target.transfer_id))
    event = side.next_event()
    assert event.task_id == "held"
    assert event.error is not None
    assert side.posted.empty()


def test_polled_pushes_are_under_way_until_they_are_told(side: Side) -> None:
    polled = PolledPushes()
    pushes = KvPush(polled.post, PATIENCE_S, PoolSlices(0, 2, 2))
    polled.attach(pushes)
    settings = LaneSettings("prefill-1#1", UNIT_BYTES)
    transports = {side.transport.name: side.transport}
    source = memoryview(side.source)
    pusher = Pusher(transports, source, pushes.on_done, settings, MonotonicClock())
    pushes.attach(pusher)
    assert not polled.is_polling
    polled.perform(side.push("a", 1))
    polled.perform(side.push("b", 2))
    told: list[WorkerEvent] = []
    clock = MonotonicClock()
    deadline_at_s = clock.now() + PATIENCE_S
    while polled.is_polling:
        told += polled.poll()
        assert clock.now() < deadline_at_s
    assert [event.task_id for event in told if isinstance(event, PushFinished)] == ["a", "b"]
    assert pusher.close(PATIENCE_S)
