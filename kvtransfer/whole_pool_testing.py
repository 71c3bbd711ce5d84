"""For tests: a pool that is pushed whole, in another order, and looked at while it comes."""

from collections.abc import Callable
from typing import Final

from kvtransfer.batches import PushSettings
from kvtransfer.device import read_bytes
from kvtransfer.protocol import BlockMoves, KvReceiver, KvSender, PushReceipt
from kvtransfer.testing import PATIENCE_S, patterned_pool
from runtime.clock import MonotonicClock

BLOCK_BYTES: Final = 64 << 10
NUM_BLOCKS: Final = 64
SEED: Final = 3
ALL: Final = tuple(range(NUM_BLOCKS))
SOURCE: Final = patterned_pool(NUM_BLOCKS, BLOCK_BYTES, SEED)
# Several batches, all of them verified.
BATCH: Final = PushSettings(checksum_fraction=1.0, max_batch_bytes=8 * BLOCK_BYTES)


def wait_for(condition: Callable[[], bool]) -> None:
    """Look until it holds. Raises: AssertionError when it does not in time."""
    clock = MonotonicClock()
    deadline_at_s = clock.now() + PATIENCE_S
    while not condition():
        assert clock.now() < deadline_at_s, "the condition did not come true in time"


def reversed_moves(generation: int = 1) -> BlockMoves:
    """Scattered on purpose: every block is a span of its own."""
    return BlockMoves("r/0", ALL, ALL[::-1], (generation,) * NUM_BLOCKS)


def grant(receiver: KvReceiver, moves: BlockMoves) -> None:
    """Let these blocks in."""
    receiver.expect(moves.dst_block_ids, moves.generations)


def push(sender: KvSender, moves: BlockMoves, timeout_s: float = PATIENCE_S) -> PushReceipt:
    """Blocks of SOURCE."""
    return sender.push(memoryview(SOURCE), moves, timeout_s=timeout_s)


def num_right_blocks(receiver: KvReceiver, moves: BlockMoves) -> int:
    """How many blocks have arrived; each of them holds the sender's bytes."""
    num_arrived = 0
    for src, dst, tag in zip(
        moves.src_block_ids, moves.dst_block_ids, moves.generations, strict=True
    ):
        if receiver.poll([dst], [tag]).is_complete:
            num_arrived += 1
            arrived = read_bytes(receiver.memory(), dst * BLOCK_BYTES, BLOCK_BYTES)
            assert arrived == SOURCE[src * BLOCK_BYTES : (src + 1) * BLOCK_BYTES]
    return num_arrived


def has_come(receiver: KvReceiver, moves: BlockMoves, least: int) -> Callable[[], bool]:
    """Whether at least so many blocks have, to wait for; none of them may be damaged."""

    def look() -> bool:
        arrival = receiver.poll(moves.dst_block_ids, moves.generations)
        assert not arrival.damaged_block_ids
        return arrival.num_arrived >= least

    return look
