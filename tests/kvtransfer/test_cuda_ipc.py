"""Pools on a device: nothing is published before its copies have ended, and nothing hangs."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kvtransfer.batches import PushSettings
from kvtransfer.cuda_ipc import CudaIpcTransport
from kvtransfer.device import DevicePool
from kvtransfer.device_testing import FakeDevice
from kvtransfer.device_writing import END_TIMEOUT_S
from kvtransfer.errors import (
    CopyStuck,
    DeviceFailed,
    TransferError,
    TransferTimeout,
)
from kvtransfer.protocol import BlockMoves, KvReceiver, KvSender, PushReceipt
from kvtransfer.receiver import PoolReceiver
from kvtransfer.segment_pool import SegmentSender
from kvtransfer.testing import PATIENCE_S, moves_of, next_incarnation, patterned_pool
from runtime.clock import Clock, ManualClock, MonotonicClock

NUM_BLOCKS, BLOCK_BYTES = 16, 512
SHM = Path("/dev/shm")


class Side:
    """A receiver and a sender over devices whose copies the test performs."""

    def __init__(self, clock: Clock, teardown_s: float, batch_blocks: int) -> None:
        settings = PushSettings(1.0, max_batch_bytes=batch_blocks * BLOCK_BYTES)
        self.device = FakeDevice(is_manual=True)
        self.transport = CudaIpcTransport(
            lambda: self.device, settings=settings, clock=clock, teardown_s=teardown_s
        )
        self.receiver: KvReceiver = self.transport.create_receiver(
            NUM_BLOCKS, BLOCK_BYTES, "decode-0", next_incarnation()
        )
        content = bytes(patterned_pool(NUM_BLOCKS, BLOCK_BYTES, seed=4))
        self.source: DevicePool = self.transport.new_pool(content)
        self.sender = self.connect("prefill-0#1")
        # The first is the receiver's.
        self.stream = self.device.streams[-1]
        self._outcome: PushReceipt | TransferError | None = None
        self._thread: threading.Thread | None = None

    def connect(self, sender_id: str) -> SegmentSender:
        return self.transport.connect(
            self.receiver.export(), sender_id=sender_id, block_bytes=BLOCK_BYTES
        )

    def begin(
        self,
        moves: BlockMoves,
        timeout_s: float = 1e9,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        def push() -> None:
            try:
                self._outcome = self.sender.push(
                    self.source, moves, timeout_s=timeout_s, should_stop=should_stop
                )
            except TransferError as error:
                self._outcome = error

        self._thread = threading.Thread(target=push)
        self._thread.start()

    def wait_until_begun(self, num_copies: int) -> None:
        wait_for(lambda: self.stream.num_begun >= num_copies)

    def outcome(self) -> PushReceipt | TransferError:
        assert self._thread is not None
        self._thread.join(PATIENCE_S)
        assert self._outcome is not None, "the push has not ended"
        return self._outcome

    def num_arrived(self, *block_ids: int) -> int:
        return self.receiver.poll(block_ids, [1] * len(block_ids)).num_arrived


def wait_for(condition: Callable[[], bool]) -> None:
    clock = MonotonicClock()
    deadline_at_s = clock.now() + PATIENCE_S
    while not condition():
        assert clock.now() < deadline_at_s, "the condition did not come true in time"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def make_side(clock: ManualClock) -> Iterator[Callable[..., Side]]:
    sides: list[Side] = []

    def make(teardown_s: float = 0.0, batch_blocks: int = 4) -> Side:
        sides.append(Side(clock, teardown_s, batch_blocks))
        return sides[-1]

    yield make
    for side in sides:
        side.sender.close()
        side.receiver.close()


def test_a_block_is_published_when_the_whole_batch_has_been_copied(
    make_side: Callable[..., Side],
) -> None:
    side = make_side()
    side.receiver.expect([1, 3, 5], [1, 1, 1])
    side.begin(moves_of((0, 1, 2), (1, 3, 5)))
    side.wait_until_begun(3)
    side.stream.advance(2)
    assert side.num_arrived(1, 3, 5) == 0
    side.stream.advance()
    assert isinstance(side.outcome(), PushReceipt)
    assert side.num_arrived(1, 3, 5) == 3


def test_a_copy_under_way_keeps_its_blocks_in_quarantine_and_is_not_published_afterwards(
    make_side: Callable[..., Side],
) -> None:
    side = make_side()
    side.receiver.expect([1, 3], [1, 1])
    side.begin(moves_of((0, 1), (1, 3)))
    side.wait_until_begun(2)
    side.receiver.revoke([1, 3])
    assert not side.receiver.quarantine_clear([1])
    side.stream.advance(2)
    assert isinstance(side.outcome(), TransferError)
    assert side.receiver.quarantine_clear([1, 3])
    assert side.num_arrived(1, 3) == 0


def test_a_deadline_is_noticed_after_the_copies_that_have_begun(
    make_side: Callable[..., Side], clock: ManualClock
) -> None:
    side = make_side(batch_blocks=1)
    side.receiver.expect([1, 3], [1, 1])
    side.begin(moves_of((0, 1), (1, 3)), timeout_s=1.0)
    side.wait_until_begun(1)
    clock.advance(2.0)
    side.stream.advance()
    outcome = side.outcome()
    assert isinstance(outcome, TransferTimeout)
    assert outcome.num_blocks_done == 1
    assert side.num_arrived(1, 3) == 1
    assert side.receiver.quarantine_clear([3])


@pytest.mark.parametrize("reason", ["deadline", "cancel"])
def test_a_copy_that_never_ends_keeps_its_claim_and_its_sender_refuses_pushes(
    make_side: Callable[..., Side], clock: ManualClock, reason: str
) -> None:
    side = make_side()
    is_cancelled = threading.Event()
    side.receiver.expect([1], [1])
    side.begin(moves_of((0,), (1,)), timeout_s=1.0, should_stop=is_cancelled.is_set)
    side.wait_until_begun(1)
    if reason == "cancel":
        is_cancelled.set()
    else:
        clock.advance(1.5)

    def is_stuck() -> bool:
        # Time passes for it whenever it looks.
        clock.advance(END_TIMEOUT_S / 10)
        return side._outcome is not None

    wait_for(is_stuck)
    assert isinstance(side.outcome(), CopyStuck)
    side.receiver.revoke([1])
    side.receiver.expect([2], [1])
    with pytest.raises(CopyStuck):
        side.sender.push(side.source, moves_of((0,), (2,)), timeout_s=1.0)
    side.sender.close()
    # Its place is not given back: only the end of the process ends the claim.
    assert not side.receiver.quarantine_clear([1])
    assert not side.receiver.forget_sender("prefill-0#1")
    assert not side.stream.is_closed


@pytest.mark.parametrize("asked_by", ["push", "check"])
def test_a_stuck_copy_that_ends_after_all_gives_up_its_claim_and_its_sender_goes_on(
    make_side: Callable[..., Side], clock: ManualClock, asked_by: str
) -> None:
    side = make_side()
    side.receiver.expect([1], [1])
    side.begin(moves_of((0,), (1,)), timeout_s=1.0)
    side.wait_until_begun(1)

    def is_stuck() -> bool:
        clock.advance(END_TIMEOUT_S / 10)
        return side._outcome is not None

    wait_for(is_stuck)
    side.receiver.revoke([1])
    side.sender.check()
    assert not side.receiver.quarantine_clear([1])
    side.stream.advance()
    # The receiver cannot know before the sender has looked.
    assert not side.receiver.quarantine_clear([1])
    if asked_by == "check":
        side.sender.check()
        assert side.receiver.quarantine_clear([1])
    side.receiver.expect([2], [1])
    side.begin(moves_of((3,), (2,)))
    side.wait_until_begun(2)
    side.stream.advance()
    assert isinstance(side.outcome(), PushReceipt)
    assert side.num_arrived(2) == 1
    assert side.receiver.quarantine_clear([1])
    side.sender.close()
    assert side.stream.is_closed


def test_a_pool_that_a_stuck_copy_writes_to_stays_mapped_when_its_sender_is_gone() -> None:
    device = FakeDevice()
    transport = CudaIpcTransport(lambda: device, settings=PushSettings(0.0))
    receiver = transport.create_receiver(1, BLOCK_BYTES, "decode-0", next_incarnation())
    receiver.expect([0], [1])
    sender = transport.connect(receiver.export(), sender_id="prefill-0#1", block_bytes=BLOCK_BYTES)
    source = transport.new_pool(bytes(BLOCK_BYTES))
    device.streams[-1].failures.append("is_done")
    with pytest.raises(CopyStuck):
        sender.push(source, moves_of((0,), (0,)), timeout_s=1.0)
    sender.close()
    ends = weakref.ref(device.opened.pop()), weakref.ref(source)
    del sender, source
    gc.collect()
    assert all(end() is not None for end in ends)
    receiver.close()


def test_a_device_that_cannot_say_what_became_of_a_copy_keeps_the_claim(
    make_side: Callable[..., Side],
) -> None:
    side = make_side()
    side.receiver.expect([1], [1])
    side.stream.failures.append("is_done")
    side.begin(moves_of((0,), (1,)))
    assert isinstance(side.outcome(), CopyStuck)
    side.receiver.revoke([1])
    assert not side.receiver.quarantine_clear([1])


@pytest.mark.parametrize("call", ["begin", "checksums"])
def test_a_refused_call_is_a_failed_push_without_a_claim(
    make_side: Callable[..., Side], call: str
) -> None:
    side = make_side()
    side.receiver.expect([1], [1])
    side.stream.failures.append(call)
    side.begin(moves_of((0,), (1,)))
    assert isinstance(side.outcome(), DeviceFailed)
    side.receiver.revoke([1])
    assert side.receiver.quarantine_clear([1])


def test_what_a_dead_sender_claimed_stays_until_the_driver_has_taken_it_apart(
    make_side: Callable[..., Side], clock: ManualClock
) -> None:
    side = make_side(teardown_s=1.0)
    dead = side.connect("prefill-1#1")
    claims = side_claims(side.receiver)
    side.receiver.expect([4, 5], [1, 1])
    # What a kill in the middle of a copy leaves: a claim behind which there is no lock.
    claims[1] = 4 << 32 | 6
    dead.close()
    side.receiver.revoke([4, 5])
    assert not side.receiver.quarantine_clear([4])
    # Nobody else gets its place meanwhile, and with it the right to clear the claim.
    newcomer = side.connect("prefill-2#1")
    clock.advance(0.9)
    assert not side.receiver.quarantine_clear([4, 5])
    clock.advance(0.2)
    assert side.receiver.quarantine_clear([4, 5])
    assert side.receiver.forget_sender("prefill-1#1")
    newcomer.close()


def test_a_newcomer_does_not_take_the_place_of_a_dead_sender_that_nobody_has_looked_after(
    make_side: Callable[..., Side], clock: ManualClock
) -> None:
    side = make_side(teardown_s=1.0)
    claims = side_claims(side.receiver)
    dead = side.connect("prefill-1#1")
    claims[1] = 4 << 32 | 6
    dead.close()
    newcomer = side.connect("prefill-2#1")
    assert claims[1] == 4 << 32 | 6
    newcomer.close()


def side_claims(receiver: KvReceiver) -> npt.NDArray[np.uint64]:
    assert isinstance(receiver, PoolReceiver)
    return receiver.pool.views.slots[:, 0]


def test_a_pool_is_mapped_once_and_unmapped_when_the_sender_leaves(
    make_side: Callable[..., Side],
) -> None:
    side = make_side()
    assert len(side.device.opened) == 1
    for block_id in (1, 2):
        side.receiver.expect([block_id], [1])
        side.begin(moves_of((0,), (block_id,)))
        side.stream.advance()
        assert isinstance(side.outcome(), PushReceipt)
    assert len(side.device.opened) == 1
    side.sender.close()
    assert not side.device.opened[0].is_open
    assert side.stream.is_closed


def test_a_pool_of_the_host_is_a_source_too(make_side: Callable[..., Side]) -> None:
    side = make_side()
    side.receiver.expect([1], [1])
    sender: KvSender = side.sender
    thread = threading.Thread(target=side.stream.advance)
    thread.start()
    source = memoryview(patterned_pool(2, BLOCK_BYTES, seed=9))
    sender.push(source, moves_of((1,), (1,)), timeout_s=PATIENCE_S)
    thread.join(PATIENCE_S)
    assert side.num_arrived(1) == 1


def test_a_pool_on_a_device_has_no_host_bytes(make_side: Callable[..., Side]) -> None:
    with pytest.raises(ValueError, match=r"memory\(\)"):
        make_side().receiver.buffer()
