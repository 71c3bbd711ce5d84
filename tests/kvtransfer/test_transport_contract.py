"""What every transport promises. A new one joins by a row in `TRANSPORTS`."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtransfer.errors import (
    ChecksumMismatch,
    ExportUnavailable,
    GrantWithdrawn,
    LayoutMismatch,
    PeerGone,
    StaleGeneration,
    StaleIncarnation,
    TransferCancelled,
    TransferTimeout,
    WrongHost,
)
from kvtransfer.loopback import LoopbackTransport
from kvtransfer.protocol import BlockMoves, KvReceiver, KvSender, Transport
from kvtransfer.sending import PushSettings
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.testing import PATIENCE_S, StallingCopy, damaging_copy, patterned_pool
from runtime.clock import ManualClock, MonotonicClock

BLOCK_BYTES = 512
NUM_BLOCKS = 16
ALL = tuple(range(NUM_BLOCKS))

MakeTransport: TypeAlias = Callable[..., Transport]
TRANSPORTS: dict[str, MakeTransport] = {
    "loopback": LoopbackTransport,
    "shared_memory": SharedMemoryTransport,
}

_lives = itertools.count(1)


@pytest.fixture(params=list(TRANSPORTS.values()), ids=list(TRANSPORTS))
def make_transport(request: pytest.FixtureRequest) -> MakeTransport:
    made: MakeTransport = request.param
    return made


class Pair:
    """A receiver and a sender of one transport, with a patterned source pool."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.worker_id = f"decode/{os.getpid()}"
        self.receiver: KvReceiver = transport.create_receiver(
            NUM_BLOCKS, BLOCK_BYTES, self.worker_id, next(_lives)
        )
        self.source = patterned_pool(NUM_BLOCKS, BLOCK_BYTES, seed=1)
        self.sender: KvSender = self.connect()

    def connect(self, sender_id: str = "prefill-0#1") -> KvSender:
        return self.transport.connect(
            self.receiver.export(), sender_id=sender_id, block_bytes=BLOCK_BYTES
        )

    def push(self, moves: BlockMoves, timeout_s: float = PATIENCE_S) -> None:
        self.sender.push(memoryview(self.source), moves, timeout_s=timeout_s)

    def source_block(self, block_id: int) -> bytes:
        return bytes(self.source[block_id * BLOCK_BYTES : (block_id + 1) * BLOCK_BYTES])

    def target_block(self, block_id: int) -> bytes:
        return bytes(self.receiver.buffer()[block_id * BLOCK_BYTES : (block_id + 1) * BLOCK_BYTES])

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


@pytest.fixture
def make_pair(make_transport: MakeTransport) -> Iterator[Callable[..., Pair]]:
    pairs: list[Pair] = []

    def make(**options: object) -> Pair:
        pairs.append(Pair(make_transport(**options)))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Pair:
    return make_pair(settings=PushSettings(checksum_fraction=1.0))


def moves_of(
    src: tuple[int, ...], dst: tuple[int, ...], generation: int = 1, transfer_id: str = "r/0"
) -> BlockMoves:
    return BlockMoves(transfer_id, src, dst, (generation,) * len(dst))


def test_pushed_blocks_lie_in_their_place_and_count_as_arrived(pair: Pair) -> None:
    pair.receiver.expect([7, 8, 3], [5, 5, 9])
    before = pair.receiver.poll([7, 8, 3], [5, 5, 9])
    assert (before.num_arrived, before.is_complete) == (0, False)
    receipt = pair.sender.push(
        memoryview(pair.source), BlockMoves("r/0", (0, 1, 2), (7, 8, 3), (5, 5, 9)), timeout_s=9.0
    )
    assert [pair.target_block(i) for i in (7, 8, 3)] == [pair.source_block(i) for i in (0, 1, 2)]
    after = pair.receiver.poll([7, 8, 3], [5, 5, 9])
    assert (after.num_arrived, after.is_complete) == (3, True)
    after.require_sound()
    assert (receipt.num_blocks, receipt.num_bytes) == (3, 3 * BLOCK_BYTES)
    assert (receipt.num_copies, receipt.num_checksums) == (2, 3)
    assert receipt.elapsed_s >= 0


def test_blocks_that_were_not_pushed_are_untouched(pair: Pair) -> None:
    pair.receiver.buffer()[:] = b"\xab" * (NUM_BLOCKS * BLOCK_BYTES)
    pair.receiver.expect([4, 5], [1, 1])
    pair.push(moves_of((9,), (4,)))
    assert pair.receiver.poll([4, 5], [1, 1]).num_arrived == 1
    for block_id in set(ALL) - {4}:
        assert pair.target_block(block_id) == b"\xab" * BLOCK_BYTES


def test_a_transfer_in_several_pushes_completes_with_the_last(pair: Pair) -> None:
    pair.receiver.expect(ALL, [1] * NUM_BLOCKS)
    for first in range(0, NUM_BLOCKS, 4):
        assert not pair.receiver.poll(ALL, [1] * NUM_BLOCKS).is_complete
        chunk = tuple(range(first, first + 4))
        pair.push(moves_of(chunk, tuple(15 - i for i in chunk)))
    assert pair.receiver.poll(ALL, [1] * NUM_BLOCKS).is_complete
    assert all(pair.target_block(15 - i) == pair.source_block(i) for i in ALL)


def test_nothing_to_push_is_a_push(pair: Pair) -> None:
    receipt = pair.sender.push(memoryview(pair.source), moves_of((), ()), timeout_s=1.0)
    assert (receipt.num_blocks, receipt.num_copies) == (0, 0)
    assert pair.receiver.poll([], []).is_complete


def test_a_block_that_was_not_granted_is_refused_and_stays_as_it_was(pair: Pair) -> None:
    with pytest.raises(StaleGeneration) as caught:
        pair.push(moves_of((0,), (6,), generation=3))
    assert (caught.value.block_id, caught.value.generation) == (6, 3)
    assert caught.value.expected is None
    assert pair.target_block(6) == bytes(BLOCK_BYTES)


@pytest.mark.parametrize("generation", [1, 3])
def test_an_older_or_newer_generation_than_granted_is_refused(pair: Pair, generation: int) -> None:
    pair.receiver.expect([6], [2])
    with pytest.raises(StaleGeneration) as caught:
        pair.push(moves_of((0,), (6,), generation))
    assert caught.value.expected == 2
    assert pair.target_block(6) == bytes(BLOCK_BYTES)


def test_one_stale_block_stops_its_whole_batch(pair: Pair) -> None:
    pair.receiver.expect([1, 2], [1, 1])
    pair.receiver.revoke([2])
    with pytest.raises(StaleGeneration):
        pair.push(moves_of((0, 1), (1, 2)))
    assert pair.receiver.poll([1], [1]).num_arrived == 0
    assert pair.target_block(1) == bytes(BLOCK_BYTES)


def test_a_late_sender_cannot_touch_a_block_granted_anew(pair: Pair) -> None:
    pair.receiver.expect([6], [1])
    pair.receiver.revoke([6])
    pair.receiver.revoke([6])
    assert pair.receiver.quarantine_clear([6])
    pair.receiver.expect([6], [2])
    pair.push(moves_of((3,), (6,), generation=2))
    with pytest.raises(StaleGeneration):
        pair.push(moves_of((0,), (6,), generation=1))
    assert pair.target_block(6) == pair.source_block(3)
    assert pair.receiver.poll([6], [2]).is_complete


def test_bytes_of_an_earlier_grant_do_not_count_for_the_next(pair: Pair) -> None:
    pair.receiver.expect([6], [1])
    pair.push(moves_of((0,), (6,)))
    pair.receiver.revoke([6])
    pair.receiver.expect([6], [2])
    assert pair.receiver.poll([6], [2]).num_arrived == 0
    arrival = pair.receiver.poll([6], [1])
    assert (arrival.num_arrived, arrival.stale_block_ids) == (0, (6,))
    with pytest.raises(GrantWithdrawn):
        arrival.require_sound()


def test_a_generation_is_never_granted_twice(pair: Pair) -> None:
    pair.receiver.expect([6], [4])
    pair.receiver.expect([6], [4])  # a repeated message is harmless
    with pytest.raises(StaleGeneration):
        pair.receiver.expect([5, 6], [1, 3])
    with pytest.raises(StaleGeneration):
        pair.push(moves_of((0,), (5,)))  # nothing of a refused grant holds
    pair.receiver.revoke([6])
    with pytest.raises(StaleGeneration):
        pair.receiver.expect([6], [4])
    pair.receiver.expect([6], [5])


def test_generations_below_one_are_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match="below 1"):
        pair.receiver.expect([0], [0])


def test_ids_outside_either_pool_are_refused(pair: Pair) -> None:
    for block_id in (-1, NUM_BLOCKS):
        with pytest.raises(LayoutMismatch):
            pair.receiver.expect([block_id], [1])
        with pytest.raises(LayoutMismatch):
            pair.push(moves_of((0,), (block_id,)))
        with pytest.raises(LayoutMismatch):
            pair.push(moves_of((block_id,), (0,)))


def test_a_source_of_other_blocks_is_refused(pair: Pair) -> None:
    with pytest.raises(LayoutMismatch):
        pair.sender.push(memoryview(bytes(BLOCK_BYTES + 1)), moves_of((0,), (0,)), timeout_s=1.0)
    with pytest.raises(LayoutMismatch, match="1024"):
        pair.transport.connect(pair.receiver.export(), sender_id="p", block_bytes=1024)


def test_an_export_that_lies_about_its_pool_is_refused(pair: Pair) -> None:
    lie = replace(pair.receiver.export(), num_blocks=NUM_BLOCKS * 2)
    with pytest.raises(LayoutMismatch):
        pair.transport.connect(lie, sender_id="p", block_bytes=BLOCK_BYTES)


def test_an_export_of_another_host_is_refused_with_both_names(pair: Pair) -> None:
    foreign = replace(pair.receiver.export(), host="elsewhere")
    with pytest.raises(WrongHost, match="elsewhere"):
        pair.transport.connect(foreign, sender_id="p", block_bytes=BLOCK_BYTES)


def test_a_damaged_block_is_named_and_never_counted(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(settings=PushSettings(checksum_fraction=1.0, copy_bytes=damaging_copy))
    pair.receiver.expect([2, 9], [1, 1])
    pair.push(moves_of((0, 1), (2, 9)))
    for _ in range(2):  # the verdict stays
        arrival = pair.receiver.poll([2, 9], [1, 1])
        assert arrival.damaged_block_ids == (2, 9)
        assert (arrival.num_arrived, arrival.is_complete) == (0, False)
    with pytest.raises(ChecksumMismatch):
        arrival.require_sound()


def test_a_block_is_verified_once_and_is_the_owners_afterwards(pair: Pair) -> None:
    pair.receiver.expect([2], [1])
    pair.push(moves_of((0,), (2,)))
    assert pair.receiver.poll([2], [1]).is_complete
    pair.receiver.buffer()[2 * BLOCK_BYTES] ^= 1  # decode appends to its own block
    assert pair.receiver.poll([2], [1]).is_complete


def test_without_checksums_only_generations_are_checked(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(settings=PushSettings(checksum_fraction=0.0, copy_bytes=damaging_copy))
    pair.receiver.expect([2], [1])
    pair.push(moves_of((0,), (2,)))
    assert pair.receiver.poll([2], [1]).is_complete


def test_a_sampled_checksum_finds_damage_in_its_sample(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(settings=PushSettings(checksum_fraction=0.25, copy_bytes=damaging_copy))
    pair.receiver.expect(ALL, [1] * NUM_BLOCKS)
    # Every second block: each is a copy, and so a damage, of its own.
    for src in ALL:
        pair.push(BlockMoves("r/0", (src,), (src,), (1,), first_index=src))
    arrival = pair.receiver.poll(ALL, [1] * NUM_BLOCKS)
    assert 3 <= len(arrival.damaged_block_ids) <= 5
    assert arrival.num_arrived == NUM_BLOCKS - len(arrival.damaged_block_ids)


def test_a_cancel_between_batches_keeps_what_was_published(
    make_pair: Callable[..., Pair],
) -> None:
    pair = make_pair(settings=PushSettings(max_batch_bytes=2 * BLOCK_BYTES))
    pair.receiver.expect(ALL, [1] * NUM_BLOCKS)
    answers = iter([False, False, True])
    with pytest.raises(TransferCancelled) as caught:
        pair.sender.push(
            memoryview(pair.source),
            moves_of(ALL, ALL),
            timeout_s=PATIENCE_S,
            should_stop=lambda: next(answers),
        )
    assert (caught.value.num_blocks_done, caught.value.num_blocks) == (4, NUM_BLOCKS)
    assert pair.receiver.poll(ALL, [1] * NUM_BLOCKS).num_arrived == 4


def test_a_push_ends_when_its_time_is_over(make_pair: Callable[..., Pair]) -> None:
    clock = ManualClock()

    def slow_copy(target: object, source: object) -> None:
        clock.advance(1.0)

    pair = make_pair(
        clock=clock, settings=PushSettings(max_batch_bytes=BLOCK_BYTES, copy_bytes=slow_copy)
    )
    pair.receiver.expect(ALL, [1] * NUM_BLOCKS)
    with pytest.raises(TransferTimeout) as caught:
        pair.push(moves_of(ALL, ALL), timeout_s=2.5)
    assert caught.value.num_blocks_done == 3


def test_a_revoked_block_stays_in_quarantine_while_its_sender_copies(
    make_pair: Callable[..., Pair],
) -> None:
    stall = StallingCopy()
    pair = make_pair(settings=PushSettings(copy_bytes=stall))
    pair.receiver.expect([4, 5, 11], [1, 1, 1])
    outcome: list[BaseException] = []

    def push() -> None:
        try:
            pair.push(moves_of((0, 1), (4, 5)))
        except StaleGeneration as error:
            outcome.append(error)

    thread = threading.Thread(target=push)
    thread.start()
    assert stall.has_begun.wait(PATIENCE_S)
    pair.receiver.revoke([4, 5, 11])
    assert not pair.receiver.quarantine_clear([4])
    assert not pair.receiver.quarantine_clear([0, 5])
    assert not pair.receiver.forget_sender("prefill-0#1")  # it lives
    assert pair.receiver.quarantine_clear([11])
    assert pair.receiver.quarantine_clear([])
    assert pair.receiver.forget_sender("someone else")
    stall.may_end.set()
    thread.join(PATIENCE_S)
    assert pair.receiver.quarantine_clear([4, 5])
    assert isinstance(outcome[0], StaleGeneration)  # checked again after the copy
    assert pair.receiver.poll([4, 5], [1, 1]).num_arrived == 0


def test_a_block_in_flight_is_not_counted(make_pair: Callable[..., Pair]) -> None:
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


def test_two_senders_fill_one_pool(pair: Pair) -> None:
    other = pair.connect("prefill-1#1")
    pair.receiver.expect([0, 1], [1, 1])
    pair.push(moves_of((5,), (0,)))
    other.push(memoryview(pair.source), moves_of((6,), (1,)), timeout_s=1.0)
    other.close()
    assert pair.receiver.poll([0, 1], [1, 1]).is_complete


def test_senders_beyond_the_limit_are_refused_until_one_leaves(
    make_pair: Callable[..., Pair],
) -> None:
    pair = make_pair(max_senders=2)
    second = pair.connect("prefill-1#1")
    with pytest.raises(ExportUnavailable, match="max_senders"):
        pair.connect("prefill-2#1")
    second.close()
    second.close()
    pair.connect("prefill-2#1").close()


def test_a_left_place_is_free_even_while_an_error_keeps_the_connection_alive(
    make_pair: Callable[..., Pair],
) -> None:
    pair = make_pair(max_senders=1)
    with pytest.raises(StaleGeneration) as kept:
        pair.push(moves_of((0,), (0,)))
    assert kept.value.__traceback__ is not None  # holds the frames, and they the mapping
    pair.sender.close()
    pair.connect("prefill-1#1").close()


def test_a_closed_receiver_is_a_gone_peer(pair: Pair) -> None:
    pair.receiver.expect([0], [1])
    view = pair.receiver.buffer()
    pair.sender.check()
    pair.receiver.close()
    pair.receiver.close()
    view[0] = 7  # still the owner's memory
    with pytest.raises(PeerGone):
        pair.sender.check()
    with pytest.raises(PeerGone):
        pair.push(moves_of((0,), (0,)))
    with pytest.raises(PeerGone):
        pair.connect()


def test_a_sender_of_an_earlier_life_is_told_so(pair: Pair) -> None:
    old_export = pair.receiver.export()
    pair.receiver.close()
    newer = pair.transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, pair.worker_id, next(_lives))
    newer.expect([0], [1])
    with pytest.raises(StaleIncarnation) as caught:
        pair.push(moves_of((0,), (0,)))
    assert caught.value.current_incarnation == newer.export().incarnation
    with pytest.raises(StaleIncarnation):
        pair.transport.connect(old_export, sender_id="p", block_bytes=BLOCK_BYTES)
    assert newer.poll([0], [1]).num_arrived == 0
    newer.close()


def test_one_life_exports_once(pair: Pair) -> None:
    export = pair.receiver.export()
    with pytest.raises(ExportUnavailable, match="already"):
        pair.transport.create_receiver(1, 8, export.worker_id, export.incarnation)


def test_a_closed_connection_is_not_used(pair: Pair) -> None:
    pair.sender.close()
    with pytest.raises(RuntimeError, match="closed"):
        pair.push(moves_of((), ()))


def test_the_probe_measures_a_working_path(make_transport: MakeTransport) -> None:
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
@pytest.mark.parametrize("name", list(TRANSPORTS))
def test_any_moves_give_what_a_plain_copy_gives(
    name: str, pairs: list[tuple[int, int]], max_batch_blocks: int
) -> None:
    pair = Pair(
        TRANSPORTS[name](settings=PushSettings(1.0, max_batch_bytes=max_batch_blocks * BLOCK_BYTES))
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
