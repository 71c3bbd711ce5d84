"""Senders in processes of their own that write into a pool themselves.

What a death, a revocation or a restart leaves behind, over every transport of that kind.
"""

import itertools
import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from kvtransfer.cuda_ipc import CudaIpcTransport
from kvtransfer.cuda_memory import CudaMemory
from kvtransfer.device import read_bytes, write_bytes
from kvtransfer.device_testing import FakeDevice
from kvtransfer.errors import ExportUnavailable
from kvtransfer.protocol import BlockMoves, KvReceiver, Transport
from kvtransfer.sender_process_testing import PushRefused, SenderProcess, SenderSpec
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.testing import patterned_pool
from kvtransfer.whole_pool_testing import (
    BLOCK_BYTES,
    NUM_BLOCKS,
    SEED,
    reversed_moves,
    wait_for,
)

_lives = itertools.count(1)


def make_fake_cuda_ipc() -> Transport:
    device = FakeDevice()
    return CudaIpcTransport(lambda: device, teardown_s=0.0)


def make_cuda_ipc_on_gpu() -> Transport:
    try:
        device = CudaMemory.of_device(0)
    except ExportUnavailable as error:
        pytest.skip(str(error))
    return CudaIpcTransport(lambda: device)


@pytest.fixture(
    params=[
        pytest.param(SharedMemoryTransport, id="shared_memory"),
        pytest.param(make_fake_cuda_ipc, id="cuda_ipc"),
        pytest.param(make_cuda_ipc_on_gpu, id="cuda_ipc_on_gpu", marks=pytest.mark.gpu),
    ]
)
def transport(request: pytest.FixtureRequest) -> Transport:
    made: Transport = request.param()
    return made


def create(transport: Transport, worker_id: str = f"decode-{os.getpid()}") -> KvReceiver:
    return transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, worker_id, next(_lives))


@pytest.fixture
def receiver(transport: Transport) -> Iterator[KvReceiver]:
    made = create(transport)
    yield made
    made.close()


def spec_for(receiver: KvReceiver) -> SenderSpec:
    return SenderSpec(receiver.export(), "prefill-0#1", NUM_BLOCKS, SEED)


def block_of(pool: memoryview | bytearray, block_id: int) -> bytes:
    return bytes(pool[block_id * BLOCK_BYTES : (block_id + 1) * BLOCK_BYTES])


def content_of(receiver: KvReceiver, block_id: int) -> bytes:
    return read_bytes(receiver.memory(), block_id * BLOCK_BYTES, BLOCK_BYTES)


def require_arrived_blocks_right(receiver: KvReceiver, moves: BlockMoves) -> int:
    """Every block that counts as arrived holds the sender's bytes; returns how many there are."""
    source = patterned_pool(NUM_BLOCKS, BLOCK_BYTES, SEED)
    num_arrived = 0
    for src, dst, tag in zip(
        moves.src_block_ids, moves.dst_block_ids, moves.generations, strict=True
    ):
        if receiver.poll([dst], [tag]).is_complete:
            num_arrived += 1
            assert content_of(receiver, dst) == block_of(source, src)
    return num_arrived


def test_another_process_pushes_into_place(receiver: KvReceiver) -> None:
    moves = reversed_moves()
    receiver.expect(moves.dst_block_ids, moves.generations)
    with SenderProcess(spec_for(receiver)) as sender:
        receipt = sender.push(moves)
    assert (receipt.num_blocks, receipt.num_copies) == (NUM_BLOCKS, NUM_BLOCKS)
    assert receiver.poll(moves.dst_block_ids, moves.generations).is_complete
    assert require_arrived_blocks_right(receiver, moves) == NUM_BLOCKS


def test_a_sender_that_dies_in_a_copy_leaves_an_incomplete_transfer(
    receiver: KvReceiver,
) -> None:
    moves = reversed_moves()
    receiver.expect(moves.dst_block_ids, moves.generations)
    spec = replace(
        spec_for(receiver), fault="die_halfway", at_copy=30, max_batch_bytes=8 * BLOCK_BYTES
    )
    with SenderProcess(spec) as sender:
        sender.begin_push(moves)
        assert sender.wait_until_dead() == -9
    arrival = receiver.poll(moves.dst_block_ids, moves.generations)
    # Three whole batches before the one it died in.
    assert (arrival.num_arrived, arrival.is_complete) == (24, False)
    assert require_arrived_blocks_right(receiver, moves) == 24
    # The kernel says that it is dead, so the quarantine ends without anyone's help.
    receiver.revoke(moves.dst_block_ids)
    wait_for(lambda: receiver.quarantine_clear(moves.dst_block_ids))


def test_a_kill_at_any_moment_never_shows_a_wrong_block(receiver: KvReceiver) -> None:
    for generation, num_arrived_at_kill in enumerate([1, 20, 50], start=1):
        moves = reversed_moves(generation)
        receiver.expect(moves.dst_block_ids, moves.generations)
        write_bytes(receiver.memory(), 0, bytes(NUM_BLOCKS * BLOCK_BYTES))
        with SenderProcess(replace(spec_for(receiver), max_batch_bytes=1)) as sender:
            sender.begin_push(moves)
            wait_for(
                lambda moves=moves, least=num_arrived_at_kill: (  # type: ignore[misc]
                    receiver.poll(moves.dst_block_ids, moves.generations).num_arrived >= least
                )
            )
            sender.kill()
        assert require_arrived_blocks_right(receiver, moves) >= num_arrived_at_kill
        receiver.revoke(moves.dst_block_ids)
        wait_for(lambda moves=moves: receiver.quarantine_clear(moves.dst_block_ids))  # type: ignore[misc]


def test_quarantine_lasts_while_the_sender_lives_and_ends_with_its_death(
    receiver: KvReceiver,
) -> None:
    receiver.expect([4, 5, 40], [1, 1, 1])
    with SenderProcess(replace(spec_for(receiver), fault="stall_halfway")) as sender:
        sender.begin_push(BlockMoves("r/0", (0, 1), (4, 5), (1, 1)))
        sender.wait_until_stalled()
        receiver.revoke([4, 5, 40])
        assert not receiver.quarantine_clear([4, 5])
        assert not receiver.forget_sender("prefill-0#1")
        assert receiver.quarantine_clear([40])
        sender.kill()
        wait_for(lambda: receiver.forget_sender("prefill-0#1"))
        assert receiver.quarantine_clear([4, 5])


def test_a_sender_finds_the_revocation_when_it_comes_out_of_its_copy(
    receiver: KvReceiver,
) -> None:
    receiver.expect([4], [1])
    with SenderProcess(replace(spec_for(receiver), fault="stall_halfway")) as sender:
        moves = BlockMoves("r/0", (0,), (4,), (1,))
        sender.begin_push(moves)
        sender.wait_until_stalled()
        receiver.revoke([4])
        sender.resume()
        with pytest.raises(PushRefused) as caught:
            sender.finish_push()
        assert caught.value.code == "kv_stale_generation"
        assert receiver.quarantine_clear([4])
        with pytest.raises(PushRefused):
            sender.push(moves)


def test_a_block_that_left_quarantine_is_never_written_again(
    receiver: KvReceiver,
) -> None:
    own = b"\xa5" * (NUM_BLOCKS * BLOCK_BYTES)
    refusals: set[str] = set()
    with SenderProcess(replace(spec_for(receiver), max_batch_bytes=3 * BLOCK_BYTES)) as sender:
        sender.connect()
        for generation in range(1, 61):
            moves = reversed_moves(generation)
            ids, tags = np.array(moves.dst_block_ids), np.array(moves.generations)
            receiver.expect(ids, tags)
            sender.begin_push(moves)
            # Revoke before, amid and after the push.
            least = generation % 6 * 12
            while receiver.poll(ids, tags).num_arrived < least:
                pass
            receiver.revoke(ids)
            while not receiver.quarantine_clear(ids):
                pass
            write_bytes(receiver.memory(), 0, own)
            try:
                sender.finish_push()
            except PushRefused as refusal:
                refusals.add(refusal.code)
            assert read_bytes(receiver.memory(), 0, len(own)) == own
    # Whether one was late enough to be refused is a matter of luck; for any other reason none was.
    assert refusals <= {"kv_stale_generation"}


def test_damage_in_another_process_is_found(receiver: KvReceiver) -> None:
    receiver.expect([4], [1])
    with SenderProcess(replace(spec_for(receiver), fault="damage")) as sender:
        sender.push(BlockMoves("r/0", (0,), (4,), (1,)))
    assert receiver.poll([4], [1]).damaged_block_ids == (4,)


def test_a_restarted_receiver_refuses_senders_of_its_earlier_life(transport: Transport) -> None:
    worker_id = f"restarted-{os.getpid()}"
    first = create(transport, worker_id)
    moves = BlockMoves("r/0", (0,), (0,), (1,))
    with SenderProcess(spec_for(first)) as connected, SenderProcess(spec_for(first)) as late:
        connected.connect()
        first.close()
        second = create(transport, worker_id)
        try:
            second.expect([0], [1])
            for sender in (connected, late):
                with pytest.raises(PushRefused) as caught:
                    sender.push(moves)
                assert caught.value.code == "kv_stale_incarnation"
            assert second.poll([0], [1]).num_arrived == 0
        finally:
            second.close()
