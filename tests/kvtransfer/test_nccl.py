"""What NCCL does otherwise than gloo, over gloo under its interface and a device of the host."""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from kvtransfer.batches import plain_copy
from kvtransfer.cuda_memory import CudaMemory
from kvtransfer.device import DeviceMemory, read_bytes
from kvtransfer.device_testing import FakeDevice
from kvtransfer.doors import PoolOwner
from kvtransfer.errors import ExportUnavailable, LayoutMismatch
from kvtransfer.group_testing import GlooAsNccl, announce, join_by_hand
from kvtransfer.group_transport import GroupTransport
from kvtransfer.plan import CopyRun
from kvtransfer.process_group import Gloo, Nccl
from kvtransfer.protocol import BlockMoves, KvReceiver, KvSender, PushReceipt
from kvtransfer.receiver import device_receiver
from kvtransfer.staging import Staging
from kvtransfer.testing import PATIENCE_S, next_incarnation
from kvtransfer.whole_pool_testing import (
    BATCH,
    BLOCK_BYTES,
    NUM_BLOCKS,
    SOURCE,
    grant,
    num_right_blocks,
    reversed_moves,
    wait_for,
)
from kvtransfer.word_checksum import word_checksum

GLOO = Gloo()


@pytest.fixture
def receiver() -> Iterator[KvReceiver]:
    made = GroupTransport(GLOO).create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", 1)
    yield made
    made.close()


def push(sender: KvSender, moves: BlockMoves) -> PushReceipt:
    return sender.push(memoryview(SOURCE), moves, timeout_s=PATIENCE_S)


def test_the_steps_of_nccl_make_one_communicator_a_pair_and_abort_it_in_the_end() -> None:
    library = GlooAsNccl()
    transport = GroupTransport(Nccl("cpu", library), settings=BATCH)
    receiver = transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", 1)
    assert receiver.export().transport == "nccl"
    sender = transport.connect(receiver.export(), sender_id="p", block_bytes=BLOCK_BYTES)
    for generation in (1, 2):
        moves = reversed_moves(generation)
        grant(receiver, moves)
        push(sender, moves)
        assert num_right_blocks(receiver, moves) == NUM_BLOCKS
    assert [group.num_aborts for group in library.groups] == [0, 0]
    sender.close()
    receiver.close()
    assert [group.num_aborts for group in library.groups] == [1, 1]


def test_a_peer_that_nccl_waits_for_in_vain_is_missed_when_its_connection_ends() -> None:
    kind = Nccl("cpu", GlooAsNccl())
    transport = GroupTransport(kind, settings=BATCH)
    receiver = transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", 1)
    stream, group = join_by_hand(receiver.export(), kind)
    grant(receiver, reversed_moves())
    announce(stream, SOURCE, reversed_moves(), BLOCK_BYTES, BATCH)
    stream.abort()
    # Not by the group, which is still there.
    wait_for(lambda: not any(t.name == "kv-link-prefill-9#1" for t in threading.enumerate()))
    group.close()
    stream.close()
    assert num_right_blocks(receiver, reversed_moves()) == 0
    receiver.close()


def test_pools_on_devices_are_pushed_by_nccl_and_refused_by_gloo(receiver: KvReceiver) -> None:
    device = FakeDevice()
    source = device.allocate(NUM_BLOCKS * BLOCK_BYTES)
    source.write(0, bytes(SOURCE))
    owner = PoolOwner("decode-0", next_incarnation())
    on_device = device_receiver(owner, NUM_BLOCKS, BLOCK_BYTES, device)
    on_device.also_serve([GroupTransport(Nccl("cpu", GlooAsNccl()), settings=BATCH)])
    transport = GroupTransport(Nccl("cpu", GlooAsNccl()), settings=BATCH)
    sender = transport.connect(on_device.export(), sender_id="p", block_bytes=BLOCK_BYTES)
    moves = reversed_moves()
    grant(on_device, moves)
    sender.push(source, moves, timeout_s=PATIENCE_S)
    # Every block has a checksum, as devices compute it.
    assert on_device.poll(moves.dst_block_ids, moves.generations).is_complete
    for src, dst in zip(moves.src_block_ids, moves.dst_block_ids, strict=True):
        arrived = read_bytes(on_device.memory(), dst * BLOCK_BYTES, BLOCK_BYTES)
        assert arrived == SOURCE[src * BLOCK_BYTES : (src + 1) * BLOCK_BYTES]
    sender.close()
    with pytest.raises(ExportUnavailable, match="take gloo out"):
        on_device.also_serve([GroupTransport(Gloo())])
    on_host = GroupTransport(GLOO).connect(
        receiver.export(), sender_id="p", block_bytes=BLOCK_BYTES
    )
    with pytest.raises(LayoutMismatch, match="on a device"):
        on_host.push(source, moves, timeout_s=PATIENCE_S)
    on_host.close()


def first_gpu() -> DeviceMemory:
    try:
        return CudaMemory.of_device(0)
    except ExportUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(
    ("make_device", "device_name"),
    [(FakeDevice, "cpu"), pytest.param(first_gpu, "cuda", marks=pytest.mark.gpu)],
    ids=["fake", "gpu"],
)
def test_blocks_of_a_device_are_gathered_and_scattered_by_their_ids(
    make_device: Callable[[], DeviceMemory], device_name: str
) -> None:
    device = make_device()
    pool, target = (device.allocate(NUM_BLOCKS * BLOCK_BYTES) for _ in range(2))
    pool.write(0, bytes(SOURCE))
    runs = (CopyRun(5, 0, 2), CopyRun(40, 9, 1), CopyRun(11, 3, 3))
    staging = Staging(8 * BLOCK_BYTES, device_name)
    ids = np.array([7, 3, 60, 1, 0, 2])
    with staging.stream():
        room = staging.gather(pool, runs, BLOCK_BYTES)
        staging.scatter(room, target, ids, plain_copy)
    for src, dst in zip([5, 6, 40, 11, 12, 13], ids.tolist(), strict=True):
        assert target.read(dst * BLOCK_BYTES, BLOCK_BYTES) == pool.read(
            src * BLOCK_BYTES, BLOCK_BYTES
        )
    words = np.frombuffer(SOURCE, np.uint8).reshape(NUM_BLOCKS, BLOCK_BYTES)
    assert staging.checksums(pool, BLOCK_BYTES, [40]) == word_checksum(words[40])
    # A pool of the host goes through pinned memory to the same room.
    on_host = bytearray(len(SOURCE))
    with staging.stream():
        room = staging.gather(memoryview(SOURCE), runs, BLOCK_BYTES)
        staging.scatter(room, memoryview(on_host), ids, plain_copy)
    assert on_host[7 * BLOCK_BYTES : 8 * BLOCK_BYTES] == SOURCE[5 * BLOCK_BYTES : 6 * BLOCK_BYTES]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nccl_says_what_is_missing(receiver: KvReceiver) -> None:
    transport = GroupTransport(Nccl())
    assert transport.can_reach(receiver.export()) == "it needs a CUDA device"
    with pytest.raises(ExportUnavailable, match="it needs a CUDA device; take nccl out"):
        transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", 1)
    with pytest.raises(ExportUnavailable, match="CUDA"):
        transport.connect(receiver.export(), sender_id="p", block_bytes=BLOCK_BYTES)
