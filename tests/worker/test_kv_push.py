"""The prefill side's hand on the transfer, over the loopback transport."""

import queue
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kvtransfer.lane import LaneSettings
from kvtransfer.loopback import LoopbackTransport
from kvtransfer.protocol import KvReceiver
from kvtransfer.pusher import Pusher
from kvtransfer.testing import FaultyTransport, patterned_pool
from runtime.clock import MonotonicClock
from scheduling.ids import BlockId, Generation, Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvTarget
from scheduling.worker_events import CancelPush, Push, PushFinished, WorkerEvent
from worker.kv_push import KvPush

PATIENCE_S = 20.0
NUM_BLOCKS, BLOCK_BYTES = 8, 64


class Side:
    """A pusher with a queue of one job a peer, and two decode workers that can be held."""

    def __init__(self) -> None:
        self.posted: queue.SimpleQueue[WorkerEvent] = queue.SimpleQueue()
        self.transport = FaultyTransport(LoopbackTransport())
        self.source = patterned_pool(NUM_BLOCKS, BLOCK_BYTES, seed=1)
        self.receiver_by_worker: dict[str, KvReceiver] = {
            name: self.transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, name, 1)
            for name in ("decode-0", "decode-1")
        }
        self.kv = KvPush(self.posted.put, push_timeout_s=PATIENCE_S)
        settings = LaneSettings("prefill-0#1", BLOCK_BYTES, max_jobs_per_peer=1)
        self.pusher = Pusher(
            {self.transport.name: self.transport},
            memoryview(self.source),
            self.kv.on_done,
            settings,
            MonotonicClock(),
        )
        self.kv.attach(self.pusher)

    def push(self, task: str, worker: str, block: int, generation: int = 1) -> Push:
        """One block to the block of the same number, granted by the receiver."""
        receiver = self.receiver_by_worker[worker]
        receiver.expect((block,), (1,))
        target = KvTarget(
            f"{task}@{worker}",
            receiver.export(),
            (BlockId(block),),
            (Generation(generation),),
        )
        return Push(TaskId(task), target, 0, (BlockId(block),))

    def next_event(self) -> WorkerEvent:
        return self.posted.get(timeout=PATIENCE_S)

    def close(self) -> None:
        self.transport.release()
        assert self.pusher.close(PATIENCE_S)
        for receiver in self.receiver_by_worker.values():
            receiver.close()


@pytest.fixture
def side() -> Iterator[Side]:
    place = Side()
    yield place
    place.close()


def test_a_push_is_answered_with_what_was_moved(side: Side) -> None:
    side.kv.perform(side.push("a", "decode-0", 3))
    event = side.next_event()
    assert isinstance(event, PushFinished)
    assert (event.task_id, event.num_blocks, event.error) == ("a", 1, None)
    assert event.num_bytes == BLOCK_BYTES
    received = bytes(side.receiver_by_worker["decode-0"].buffer())
    assert (
        received[3 * BLOCK_BYTES : 4 * BLOCK_BYTES]
        == side.source[3 * BLOCK_BYTES : 4 * BLOCK_BYTES]
    )


def test_preparing_a_peer_never_raises_and_the_first_push_still_says_what_is_wrong(
    side: Side,
) -> None:
    export = side.receiver_by_worker["decode-0"].export()
    side.kv.prepare_peer(export)
    side.kv.prepare_peer(replace(export, incarnation=Incarnation(0)))
    side.kv.perform(side.push("a", "decode-0", 1))
    event = side.next_event()
    assert isinstance(event, PushFinished)
    assert event.error is None


def test_a_refused_generation_is_an_error_of_the_push(side: Side) -> None:
    side.kv.perform(side.push("a", "decode-0", 3, generation=2))
    event = side.next_event()
    assert isinstance(event, PushFinished)
    assert event.error is not None
    assert event.num_blocks == 0


def hold(side: Side, worker: str) -> None:
    """Fill the peer: one push under way, one in its queue."""
    side.transport.hold(worker)
    side.kv.perform(side.push("running", worker, 0))
    side.transport.wait_until_held(worker)
    side.kv.perform(side.push("queued", worker, 1))


def test_a_full_peer_holds_up_no_other(side: Side) -> None:
    hold(side, "decode-0")
    side.kv.perform(side.push("held", "decode-0", 2))
    assert side.kv.is_polling
    side.kv.perform(side.push("other", "decode-1", 3))
    event = side.next_event()
    assert isinstance(event, PushFinished)
    assert (event.task_id, event.error) == ("other", None)


def test_what_was_held_back_goes_once_there_is_room(side: Side) -> None:
    hold(side, "decode-0")
    side.kv.perform(side.push("held", "decode-0", 2))
    side.kv.perform(side.push("last", "decode-0", 3))
    side.transport.release()
    done: list[str] = []
    while len(done) < 4:
        side.kv.poll()
        try:
            event = side.posted.get(timeout=0.01)
        except queue.Empty:
            continue
        assert isinstance(event, PushFinished)
        assert event.error is None
        done.append(event.task_id)
    assert done == ["running", "queued", "held", "last"]
    assert not side.kv.is_polling


def test_a_cancel_answers_every_copy_once(side: Side) -> None:
    hold(side, "decode-0")
    held = side.push("held", "decode-0", 2)
    side.kv.perform(held)
    side.kv.perform(side.push("kept", "decode-0", 3))
    side.kv.perform(CancelPush(TaskId("held"), held.target.transfer_id))
    event = side.next_event()
    assert isinstance(event, PushFinished)
    assert event.task_id == "held"
    assert event.error is not None
    assert "cancelled" in event.error
    assert side.kv.is_polling, "the other task's copy still waits"
    assert side.posted.empty()


def test_a_worker_that_left_is_an_error_and_not_an_exception(side: Side) -> None:
    push = side.push("a", "decode-0", 0)
    side.receiver_by_worker["decode-0"].close()
    side.kv.perform(push)
    event = side.next_event()
    assert isinstance(event, PushFinished)
    assert event.error is not None
    assert push.target.export.worker_id == WorkerId("decode-0")
