"""The decode side's hand on the transfer, over the loopback transport."""

from collections.abc import Iterator

import pytest

from engine.copy_stream_testing import FakeCopyStream
from engine.kv_pool import KvLayout, KvPool
from engine.kv_swap import KvSwap
from kvtransfer.batches import PushSettings
from kvtransfer.errors import CopyStuck
from kvtransfer.loopback import LoopbackTransport
from kvtransfer.protocol import BlockMoves
from kvtransfer.testing import patterned_pool
from runtime.clock import ManualClock
from scheduling.errors import KvCorrupted
from scheduling.ids import BlockId, Generation, TaskId
from scheduling.worker_events import (
    AwaitKv,
    ExpectKv,
    KvArrived,
    KvRefused,
    KvSwapped,
    Push,
    QuarantineCleared,
    RevokeKv,
    SwapIn,
    SwapOut,
)
from worker.kv_receive import SWAP_STUCK_S, KvReceive

NUM_BLOCKS, BLOCK_BYTES = 8, 64
ARRIVAL_TIMEOUT_S = 5.0
TASK = TaskId("r/0~1")
BLOCKS = (BlockId(2), BlockId(5))
TAGS = (Generation(1), Generation(1))


class Side:
    """A decode worker's receiver and a prefill worker's connection to it."""

    def __init__(self) -> None:
        transport = LoopbackTransport(PushSettings(checksum_fraction=1.0))
        self.clock = ManualClock()
        self.receiver = transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", 1)
        self.kv = KvReceive(self.receiver, ARRIVAL_TIMEOUT_S, self.clock)
        self.sender = transport.connect(
            self.receiver.export(), sender_id="prefill-0#1", block_bytes=BLOCK_BYTES
        )
        self.source = memoryview(patterned_pool(NUM_BLOCKS, BLOCK_BYTES, seed=1))

    def push(self, *positions: int) -> None:
        for position in positions:
            moves = BlockMoves("t", (position,), (BLOCKS[position],), (TAGS[position],), position)
            self.sender.push(self.source, moves, timeout_s=20.0)

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


@pytest.fixture
def side() -> Iterator[Side]:
    place = Side()
    place.kv.perform(ExpectKv(BLOCKS, TAGS))
    yield place
    place.close()


def test_kv_has_arrived_when_every_block_has(side: Side) -> None:
    side.kv.perform(AwaitKv(TASK, BLOCKS, TAGS))
    side.push(0)
    assert side.kv.poll() == []
    assert side.kv.is_polling
    side.push(1)
    assert side.kv.poll() == [KvArrived(TASK, "loopback")]
    assert not side.kv.is_polling
    assert side.kv.poll() == []


def test_kv_that_came_before_it_was_awaited_counts(side: Side) -> None:
    side.push(0, 1)
    assert side.kv.poll() == []
    side.kv.perform(AwaitKv(TASK, BLOCKS, TAGS))
    assert side.kv.poll() == [KvArrived(TASK, "loopback")]


def test_kv_that_does_not_come_in_time_is_refused_once(side: Side) -> None:
    side.kv.perform(AwaitKv(TASK, BLOCKS, TAGS))
    side.push(0)
    side.clock.advance(ARRIVAL_TIMEOUT_S - 0.1)
    assert side.kv.poll() == []
    side.clock.advance(0.2)
    (refused,) = side.kv.poll()
    assert isinstance(refused, KvRefused)
    assert refused.code == "transfer_failed"
    assert refused.message.startswith("1 KV blocks")
    assert side.kv.poll() == []


def test_damaged_kv_is_refused_as_corrupted(side: Side) -> None:
    side.push(0, 1)
    side.receiver.buffer()[BLOCKS[1] * BLOCK_BYTES] ^= 1
    side.kv.perform(AwaitKv(TASK, BLOCKS, TAGS))
    (refused,) = side.kv.poll()
    assert isinstance(refused, KvRefused)
    assert refused.code == KvCorrupted.code


def test_revoked_blocks_are_clear_when_nobody_writes_and_no_arrival_is_told(side: Side) -> None:
    side.kv.perform(AwaitKv(TASK, BLOCKS, TAGS))
    side.push(0)
    side.kv.perform(RevokeKv(TASK, BLOCKS))
    assert side.kv.poll() == [QuarantineCleared(TASK)]
    assert not side.kv.is_polling
    with pytest.raises(Exception, match="generation"):
        side.push(1)
    assert side.kv.poll() == []


def test_blocks_that_are_granted_again_do_not_take_what_was_meant_for_the_first(side: Side) -> None:
    side.kv.perform(RevokeKv(TASK, BLOCKS))
    assert side.kv.poll() == [QuarantineCleared(TASK)]
    later = (Generation(2), Generation(2))
    side.kv.perform(ExpectKv(BLOCKS, later))
    other = TaskId("r/0~2")
    side.kv.perform(AwaitKv(other, BLOCKS, later))
    with pytest.raises(Exception, match="generation"):
        side.push(0)
    assert side.kv.poll() == []
    assert side.kv.is_polling


def test_a_decode_worker_pushes_nothing(side: Side) -> None:
    with pytest.raises(ValueError, match="pushes no KV"):
        side.kv.perform(Push(TASK, None, 0, ()))  # type: ignore[arg-type]


def test_blocks_are_copied_to_host_memory_and_back() -> None:
    pool = KvPool(KvLayout(1, 1, 4, 2, "float32"), NUM_BLOCKS)
    receiver = LoopbackTransport().create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", 1)
    kv = KvReceive(receiver, ARRIVAL_TIMEOUT_S, ManualClock(), KvSwap(pool, 2))
    pool.tensor[3] = 3.0
    kv.perform(SwapOut((BlockId(3),), (BlockId(1),)))
    pool.tensor[3] = 0.0
    kv.perform(SwapIn((BlockId(1),), (BlockId(6),)))
    assert (pool.tensor[6] == 3.0).all()
    assert kv.poll() == [KvSwapped(1, 0.0, is_out=True), KvSwapped(1, 0.0, is_out=False)]
    assert kv.poll() == [], "each copy is told once"
    receiver.close()


def test_copies_beside_passes_are_told_when_they_have_run_and_awaited_before_a_grant() -> None:
    pool = KvPool(KvLayout(1, 1, 4, 2, "float32"), NUM_BLOCKS)
    receiver = LoopbackTransport().create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", 1)
    swap = KvSwap(pool, 2, FakeCopyStream())
    kv = KvReceive(receiver, ARRIVAL_TIMEOUT_S, ManualClock(), swap)
    kv.perform(SwapOut(BLOCKS, (BlockId(0), BlockId(1))))
    assert (kv.poll(), kv.is_polling) == ([], True)
    # A freed block is granted: a sender may write to it from now on.
    kv.perform(ExpectKv(BLOCKS[:1], TAGS[:1]))
    (swapped,) = kv.poll()
    assert isinstance(swapped, KvSwapped)
    assert (swapped.num_blocks, swapped.is_out, kv.is_polling) == (2, True, False)
    receiver.close()


def test_a_swap_that_does_not_end_ends_the_worker_in_time() -> None:
    pool = KvPool(KvLayout(1, 1, 4, 2, "float32"), NUM_BLOCKS)
    receiver = LoopbackTransport().create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", 1)
    stream, clock = FakeCopyStream(), ManualClock()
    kv = KvReceive(receiver, ARRIVAL_TIMEOUT_S, clock, KvSwap(pool, 2, stream))
    for block_id, swap_block_id in ((2, 0), (5, 1)):
        kv.perform(SwapOut((BlockId(block_id),), (BlockId(swap_block_id),)))
    kv.poll()
    clock.advance(SWAP_STUCK_S - 1)
    assert kv.poll() == []
    # As long as some end, the others are only waiting for their turn.
    stream.advance()
    assert len(kv.poll()) == 1
    clock.advance(SWAP_STUCK_S - 1)
    assert kv.poll() == []
    clock.advance(SWAP_STUCK_S)
    with pytest.raises(CopyStuck, match="restart this worker"):
        kv.poll()
    receiver.close()
