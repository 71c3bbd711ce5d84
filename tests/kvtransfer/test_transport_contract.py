"""What every transport promises about bytes: in place, whole, checked, in time."""

import threading
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtransfer.batches import PushSettings
from kvtransfer.errors import ChecksumMismatch, LayoutMismatch, TransferCancelled, TransferTimeout
from kvtransfer.protocol import BlockMoves, Transport
from kvtransfer.testing import (
    PAIR_BLOCK_BYTES,
    PAIR_NUM_BLOCKS,
    PATIENCE_S,
    StallingCopy,
    TransportPair,
    damaging_copy,
    moves_of,
)
from runtime.clock import ManualClock, MonotonicClock

NUM_BLOCKS, BLOCK_BYTES = PAIR_NUM_BLOCKS, PAIR_BLOCK_BYTES
ALL = tuple(range(NUM_BLOCKS))


def test_pushed_blocks_lie_in_their_place_and_count_as_arrived(pair: TransportPair) -> None:
    pair.receiver.expect([7, 8, 3], [5, 5, 9])
    before = pair.receiver.poll([7, 8, 3], [5, 5, 9])
    assert (before.num_arrived, before.is_complete) == (0, False)
    receipt = pair.sender.push(
        pair.source_memory,
        BlockMoves("r/0", (0, 1, 2), (7, 8, 3), (5, 5, 9)),
        timeout_s=PATIENCE_S,
    )
    assert [pair.target_block(i) for i in (7, 8, 3)] == [pair.source_block(i) for i in (0, 1, 2)]
    after = pair.receiver.poll([7, 8, 3], [5, 5, 9])
    assert (after.num_arrived, after.is_complete) == (3, True)
    after.require_sound()
    assert (receipt.num_blocks, receipt.num_bytes) == (3, 3 * BLOCK_BYTES)
    assert (receipt.num_copies, receipt.num_checksums) == (2, 3)
    assert receipt.elapsed_s >= 0


def test_blocks_that_were_not_pushed_are_untouched(pair: TransportPair) -> None:
    pair.set_target(0, b"\xab" * (NUM_BLOCKS * BLOCK_BYTES))
    pair.receiver.expect([4, 5], [1, 1])
    pair.push(moves_of((9,), (4,)))
    assert pair.receiver.poll([4, 5], [1, 1]).num_arrived == 1
    for block_id in set(ALL) - {4}:
        assert pair.target_block(block_id) == b"\xab" * BLOCK_BYTES


def test_a_transfer_in_several_pushes_completes_with_the_last(pair: TransportPair) -> None:
    pair.receiver.expect(ALL, [1] * NUM_BLOCKS)
    for first in range(0, NUM_BLOCKS, 4):
        assert not pair.receiver.poll(ALL, [1] * NUM_BLOCKS).is_complete
        chunk = tuple(range(first, first + 4))
        pair.push(moves_of(chunk, tuple(15 - i for i in chunk)))
    assert pair.receiver.poll(ALL, [1] * NUM_BLOCKS).is_complete
    assert all(pair.target_block(15 - i) == pair.source_block(i) for i in ALL)


def test_nothing_to_push_is_a_push(pair: TransportPair) -> None:
    receipt = pair.sender.push(pair.source_memory, moves_of((), ()), timeout_s=PATIENCE_S)
    assert (receipt.num_blocks, receipt.num_copies) == (0, 0)
    assert pair.receiver.poll([], []).is_complete


def test_ids_outside_either_pool_are_refused(pair: TransportPair) -> None:
    for block_id in (-1, NUM_BLOCKS):
        with pytest.raises(LayoutMismatch):
            pair.receiver.expect([block_id], [1])
        with pytest.raises(LayoutMismatch):
            pair.push(moves_of((0,), (block_id,)))
        with pytest.raises(LayoutMismatch):
            pair.push(moves_of((block_id,), (0,)))


def test_a_source_of_other_blocks_is_refused(pair: TransportPair) -> None:
    with pytest.raises(LayoutMismatch):
        pair.sender.push(memoryview(bytes(BLOCK_BYTES + 1)), moves_of((0,), (0,)), timeout_s=1.0)
    with pytest.raises(LayoutMismatch, match="1024"):
        pair.transport.connect(pair.receiver.export(), sender_id="p", block_bytes=1024)


def test_a_damaged_block_is_named_and_never_counted(
    make_pair: Callable[..., TransportPair],
) -> None:
    pair = make_pair(settings=PushSettings(checksum_fraction=1.0, copy_bytes=damaging_copy))
    pair.receiver.expect([2, 9], [1, 1])
    pair.push(moves_of((0, 1), (2, 9)))
    for _ in range(2):  # the verdict stays
        arrival = pair.receiver.poll([2, 9], [1, 1])
        assert arrival.damaged_block_ids == (2, 9)
        assert (arrival.num_arrived, arrival.is_complete) == (0, False)
    with pytest.raises(ChecksumMismatch):
        arrival.require_sound()


def test_a_block_is_verified_once_and_is_the_owners_afterwards(pair: TransportPair) -> None:
    pair.receiver.expect([2], [1])
    pair.push(moves_of((0,), (2,)))
    assert pair.receiver.poll([2], [1]).is_complete
    # Decode appends to its own block.
    pair.set_target(2 * BLOCK_BYTES, bytes([pair.target_block(2)[0] ^ 1]))
    assert pair.receiver.poll([2], [1]).is_complete


def test_without_checksums_only_generations_are_checked(
    make_pair: Callable[..., TransportPair],
) -> None:
    pair = make_pair(settings=PushSettings(checksum_fraction=0.0, copy_bytes=damaging_copy))
    pair.receiver.expect([2], [1])
    pair.push(moves_of((0,), (2,)))
    assert pair.receiver.poll([2], [1]).is_complete


def test_a_sampled_checksum_finds_damage_in_its_sample(
    make_pair: Callable[..., TransportPair],
) -> None:
    pair = make_pair(settings=PushSettings(checksum_fraction=0.25, copy_bytes=damaging_copy))
    pair.receiver.expect(ALL, [1] * NUM_BLOCKS)
    # Every second block: each is a copy, and so a damage, of its own.
    for src in ALL:
        pair.push(BlockMoves("r/0", (src,), (src,), (1,), first_index=src))
    arrival = pair.receiver.poll(ALL, [1] * NUM_BLOCKS)
    assert 3 <= len(arrival.damaged_block_ids) <= 5
    assert arrival.num_arrived == NUM_BLOCKS - len(arrival.damaged_block_ids)


def test_a_cancel_between_batches_keeps_what_was_published(
    make_pair: Callable[..., TransportPair],
) -> None:
    # On a clock that stands still the sender waits for the last answers as long as they take.
    pair = make_pair(clock=ManualClock(), settings=PushSettings(max_batch_bytes=2 * BLOCK_BYTES))
    pair.receiver.expect(ALL, [1] * NUM_BLOCKS)

    def num_published() -> int:
        return pair.receiver.poll(ALL, [1] * NUM_BLOCKS).num_arrived

    with pytest.raises(TransferCancelled) as caught:
        pair.sender.push(
            pair.source_memory,
            moves_of(ALL, ALL),
            timeout_s=PATIENCE_S,
            # Also asked in the middle of a batch, where that takes long.
            should_stop=lambda: num_published() >= 4,
        )
    assert caught.value.num_blocks == NUM_BLOCKS
    # Some transports send batches before the first is answered.
    assert num_published() in range(4, NUM_BLOCKS, 2)
    # The answer to the last batch may have been under way.
    assert caught.value.num_blocks_done in (num_published() - 2, num_published())


def test_a_push_ends_when_its_time_is_over(make_pair: Callable[..., TransportPair]) -> None:
    clock = ManualClock()

    def slow_copy(target: object, source: object) -> None:
        clock.advance(1.0)

    pair = make_pair(
        clock=clock, settings=PushSettings(max_batch_bytes=BLOCK_BYTES, copy_bytes=slow_copy)
    )
    pair.receiver.expect(ALL, [1] * NUM_BLOCKS)
    with pytest.raises(TransferTimeout) as caught:
        pair.push(moves_of(ALL, ALL), timeout_s=2.5)
    # A transport may have a few batches on their way when it looks at the clock.
    assert 3 <= caught.value.num_blocks_done <= 7


def test_a_block_in_flight_is_not_counted(make_pair: Callable[..., TransportPair]) -> None:
    stall = StallingCopy()
    pair = make_pair(settings=PushSettings(copy_bytes=stall))
    pair.receiver.expect([4], [1])
    thread = threading.Thread(target=pair.push, args=[moves_of((0,), (4,))])
    thread.start()
    assert stall.has_begun.wait(PATIENCE_S)
    assert pair.receiver.poll([4], [1]).num_arrived == 0
    stall.may_end.set()
    thread.join(PATIENCE_S)
    assert pair.receiver.poll([4], [1]).is_complete


def test_two_senders_fill_one_pool(pair: TransportPair) -> None:
    other = pair.connect("prefill-1#1")
    pair.receiver.expect([0, 1], [1, 1])
    pair.push(moves_of((5,), (0,)))
    other.push(pair.source_memory, moves_of((6,), (1,)), timeout_s=PATIENCE_S)
    other.close()
    assert pair.receiver.poll([0, 1], [1, 1]).is_complete


def test_the_probe_measures_a_working_path(make_transport: Callable[..., Transport]) -> None:
    report = make_transport().probe(MonotonicClock())
    assert report.is_available
    assert report.bytes_per_s is not None
    assert report.bytes_per_s > 0


@settings(max_examples=30, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(st.sampled_from(ALL), st.sampled_from(ALL)),
        unique_by=lambda move: move[1],
        max_size=NUM_BLOCKS,
    ),
    max_batch_blocks=st.integers(1, 5),
)
def test_any_moves_give_what_a_plain_copy_gives(
    make_transport: Callable[..., Transport], pairs: list[tuple[int, int]], max_batch_blocks: int
) -> None:
    pair = TransportPair(
        make_transport(settings=PushSettings(1.0, max_batch_bytes=max_batch_blocks * BLOCK_BYTES))
    )
    try:
        src, dst = tuple(s for s, _ in pairs), tuple(d for _, d in pairs)
        generations = tuple(range(1, len(pairs) + 1))
        pair.receiver.expect(dst, generations)
        pair.push(BlockMoves("r/0", src, dst, generations))
        assert pair.receiver.poll(dst, generations).is_complete
        wanted = dict.fromkeys(ALL, bytes(BLOCK_BYTES))
        wanted |= {d: pair.source_block(s) for s, d in pairs}
        assert {i: pair.target_block(i) for i in ALL} == wanted
    finally:
        pair.close()
