"""How a process group ends where the library, or the device, does not end what it was given."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest
import torch

from kvtransfer.batches import PushSettings
from kvtransfer.device import read_bytes
from kvtransfer.device_testing import FakeDevice
from kvtransfer.doors import PoolOwner
from kvtransfer.errors import CopyStuck, StaleGeneration, TransferError
from kvtransfer.group_rooms import GroupRooms
from kvtransfer.group_testing import FakeSideStream, GroupThatIsNotEnded, NcclOnADevice
from kvtransfer.group_transport import GroupTransport
from kvtransfer.process_group import SENDER, PairGroup
from kvtransfer.protocol import KvSender
from kvtransfer.receiver import PoolReceiver, device_receiver
from kvtransfer.staging import Staging
from kvtransfer.testing import PATIENCE_S, moves_of, next_incarnation, patterned_pool

BLOCK_BYTES, NUM_BLOCKS = 512, 16
SOURCE = bytes(patterned_pool(NUM_BLOCKS, BLOCK_BYTES, seed=2))
BATCH = PushSettings(checksum_fraction=1.0, max_batch_bytes=4 * BLOCK_BYTES)


class Side:
    """A receiver and a sender over devices that a test speaks for."""

    def __init__(self) -> None:
        self.receiving, self.sending = NcclOnADevice(), NcclOnADevice()
        owner = PoolOwner("decode-0", next_incarnation())
        device = FakeDevice()
        self.receiver: PoolReceiver = device_receiver(owner, NUM_BLOCKS, BLOCK_BYTES, device)
        self.receiver.also_serve([GroupTransport(self.receiving, settings=BATCH)])
        self.source = device.allocate(len(SOURCE))
        self.source.write(0, SOURCE)
        self.sender: KvSender = GroupTransport(self.sending, settings=BATCH).connect(
            self.receiver.export(), sender_id="p", block_bytes=BLOCK_BYTES
        )

    def push(self, block_id: int) -> None:
        self.sender.push(self.source, moves_of((block_id,), (block_id,)), timeout_s=PATIENCE_S)

    def has_arrived(self, block_id: int) -> bool:
        if not self.receiver.poll([block_id], [1]).is_complete:
            return False
        at = block_id * BLOCK_BYTES
        assert read_bytes(self.receiver.memory(), at, BLOCK_BYTES) == SOURCE[at : at + BLOCK_BYTES]
        return True


@pytest.fixture
def side() -> Iterator[Side]:
    made = Side()
    yield made
    made.sender.close()
    made.receiver.close()


def test_behind_a_gathering_that_is_stuck_pushes_are_refused_until_the_device_answers(
    side: Side,
) -> None:
    side.receiver.expect([1], [1])
    side.push(1)
    # Nobody was granted this one, so the push ends early and the source is the caller's again.
    side.sending.streams[0].problem = "CUDA error: unspecified launch failure"
    with pytest.raises(CopyStuck):
        side.push(2)
    side.receiver.expect([3], [1])
    for _ in range(2):
        with pytest.raises(CopyStuck, match="begun before this one"):
            side.push(3)
        side.sender.check()
    # Nothing was asked of the device meanwhile, and nobody met anybody.
    assert len(side.sending.streams) == 1
    side.sending.streams[0].problem = None
    side.push(3)
    assert side.has_arrived(1)
    assert side.has_arrived(3)


def test_a_push_that_was_refused_leaves_no_answer_for_the_next(side: Side) -> None:
    for block_id in range(4):
        with pytest.raises(StaleGeneration):
            side.push(block_id)
        side.receiver.expect([block_id], [1])
        side.push(block_id)
        assert side.has_arrived(block_id)


def test_a_receiver_whose_device_does_not_end_a_copy_keeps_the_claim(side: Side) -> None:
    side.receiver.expect([1, 2], [1, 1])
    side.push(1)
    side.receiving.streams[0].problem = "CUDA error: unspecified launch failure"
    with pytest.raises(TransferError):
        side.push(2)
    assert not side.has_arrived(2)
    side.receiver.revoke([1, 2])
    assert not side.receiver.quarantine_clear([2])
    assert side.receiver.quarantine_clear([1])
    # Until the device answers again.
    side.receiving.streams[0].problem = None
    assert side.receiver.quarantine_clear([2])
    side.receiver.expect([2], [2])
    side.sender.push(side.source, moves_of((2,), (2,), generation=2), timeout_s=PATIENCE_S)
    assert side.receiver.poll([2], [2]).is_complete


def rooms_of(group: object, stream: FakeSideStream) -> GroupRooms:
    pair = PairGroup(group, SENDER, None, is_polled=True)  # type: ignore[arg-type]
    rooms = GroupRooms(pair, Staging(BLOCK_BYTES, "cpu", stream))
    rooms.staging.next_room(BLOCK_BYTES)
    return rooms


def room_of(rooms: GroupRooms) -> "weakref.ref[torch.Tensor]":
    room = rooms.staging._rooms[0]
    assert room is not None
    return weakref.ref(room)


def test_rooms_of_a_group_that_the_library_does_not_end_stay_with_the_process() -> None:
    library = GroupThatIsNotEnded()
    rooms = rooms_of(library, FakeSideStream())
    room = room_of(rooms)
    rooms.close(timeout_s=0.05)
    assert library.is_asked.is_set()
    rooms.close(timeout_s=0.05)
    del rooms
    gc.collect()
    assert room() is not None
    library.may_end.set()


def test_rooms_of_a_group_on_a_failed_device_stay_too_and_others_go() -> None:
    for problem in ("CUDA error: an illegal memory access was encountered", None):
        library, stream = GroupThatIsNotEnded(), FakeSideStream()
        library.may_end.set()
        stream.problem = problem
        rooms = rooms_of(library, stream)
        room = room_of(rooms)
        rooms.close()
        gc.collect()
        assert (room() is not None) == (problem is not None)


def test_a_process_is_prepared_for_nccl_with_those_that_it_starts() -> None:
    script = (
        "import subprocess, sys\n"
        "from kvtransfer import nccl_settings\n"
        "assert len(nccl_settings.missing()) == len(nccl_settings.SETTINGS)\n"
        "assert 'TORCH_NCCL_ASYNC_ERROR_HANDLING=0' in nccl_settings.missing()\n"
        "nccl_settings.prepare_process()\n"
        "assert not nccl_settings.missing()\n"
        "code = 'from kvtransfer import nccl_settings as n; assert not n.missing()'\n"
        "subprocess.run([sys.executable, '-c', code], check=True)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=PATIENCE_S)
