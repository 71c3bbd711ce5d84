"""Shared memory as files: whose they are, who removes them, what is refused.

What senders in other processes may do: test_sender_processes.py.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvtransfer import segment
from kvtransfer.errors import ExportUnavailable, LayoutMismatch, WrongHost
from kvtransfer.host import shared_memory_identity
from kvtransfer.protocol import BlockMoves
from kvtransfer.receiver import PoolReceiver
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.testing import PATIENCE_S, patterned_pool
from scheduling.ids import Incarnation, WorkerId
from scheduling.kv_export import KvExport

SHM = Path("/dev/shm")
BLOCK_BYTES = 64 << 10
NUM_BLOCKS = 64
SEED = 3

_lives = itertools.count(1)


def create(worker_id: str = f"decode-{os.getpid()}") -> PoolReceiver:
    return SharedMemoryTransport().create_receiver(NUM_BLOCKS, BLOCK_BYTES, worker_id, next(_lives))


@pytest.fixture
def receiver() -> Iterator[PoolReceiver]:
    made = create()
    yield made
    made.close()


def block_of(pool: memoryview | bytearray, block_id: int) -> bytes:
    return bytes(pool[block_id * BLOCK_BYTES : (block_id + 1) * BLOCK_BYTES])


def test_a_killed_receiver_is_a_gone_peer_and_its_file_is_removed_at_the_next_start() -> None:
    worker_id = f"killed-{os.getpid()}"
    script = (
        "import sys; from kvtransfer.shared_memory import SharedMemoryTransport\n"
        "transport = SharedMemoryTransport()\n"
        f"r = transport.create_receiver({NUM_BLOCKS}, {BLOCK_BYTES}, sys.argv[1], 1)\n"
        "r.expect([0, 1], [1, 1]); print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, worker_id], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        path = SHM / segment.segment_name("tandem", worker_id, 1)
        export = replace(
            create_and_close(),
            address=path.name,
            worker_id=WorkerId(worker_id),
            incarnation=Incarnation(1),
        )
        source = memoryview(patterned_pool(NUM_BLOCKS, BLOCK_BYTES, SEED))
        sender = SharedMemoryTransport().connect(export, sender_id="p", block_bytes=BLOCK_BYTES)
        sender.push(source, BlockMoves("r/0", (0,), (0,), (1,)), timeout_s=PATIENCE_S)
        process.kill()
        process.wait(PATIENCE_S)
        with pytest.raises(Exception, match="no longer exports") as caught:
            sender.push(source, BlockMoves("r/0", (1,), (1,), (1,)), timeout_s=PATIENCE_S)
        assert type(caught.value).__name__ == "PeerGone"
        sender.close()
    assert path.exists()
    successor = SharedMemoryTransport().create_receiver(1, 8, worker_id, 2)
    assert not path.exists()
    successor.close()
    assert not (SHM / segment.segment_name("tandem", worker_id, 2)).exists()


def create_and_close() -> KvExport:
    receiver = create(f"template-{os.getpid()}")
    receiver.close()
    return receiver.export()


def test_leftovers_are_removed_but_no_living_segment(receiver: PoolReceiver) -> None:
    leftover = SHM / segment.segment_name("tandem", f"left/over-{os.getpid()}", 7)
    leftover.write_bytes(b"anything")
    assert leftover.name in segment.remove_leftovers(SHM)
    assert not leftover.exists()
    assert (SHM / receiver.export().address).exists()


def test_a_pool_larger_than_the_memory_is_refused_before_anything_is_allocated() -> None:
    before = os.statvfs(SHM).f_bavail
    with pytest.raises(ExportUnavailable, match=r"MiB free.*needs \d+ MiB.*--shm-size"):
        SharedMemoryTransport().create_receiver(1 << 20, 1 << 30, "too-large", 1)
    # Others may use it at the same time.
    assert os.statvfs(SHM).f_bavail >= before // 2


def test_a_folder_that_is_not_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ExportUnavailable, match="mount a tmpfs"):
        SharedMemoryTransport(tmp_path / "missing").create_receiver(1, 8, "decode", 1)


def test_a_segment_has_its_name_and_all_its_memory_only_when_it_is_complete() -> None:
    path, num_bytes = SHM / segment.segment_name("tandem", f"whole-{os.getpid()}", 1), 3 << 20
    with segment.new_segment(path, num_bytes) as file:
        about = os.fstat(file)
        assert (about.st_size, about.st_blocks * 512) == (num_bytes, num_bytes)
        assert not path.exists()
    assert segment.is_owned(path)
    os.close(file)
    assert not segment.is_owned(path)
    path.unlink()


def test_a_segment_whose_making_fails_leaves_nothing() -> None:
    path = SHM / segment.segment_name("tandem", f"failed-{os.getpid()}", 1)
    with pytest.raises(ZeroDivisionError), segment.new_segment(path, 4096):
        raise ZeroDivisionError
    assert not path.exists()


def test_an_address_cannot_lead_to_another_file(receiver: PoolReceiver) -> None:
    for address in ("../../etc/passwd", "tandem-kv.other.1", ""):
        with pytest.raises(LayoutMismatch):
            SharedMemoryTransport().connect(
                replace(receiver.export(), address=address), sender_id="p", block_bytes=BLOCK_BYTES
            )


def test_a_file_that_is_no_pool_is_refused(receiver: PoolReceiver) -> None:
    with (SHM / receiver.export().address).open("r+b") as file:
        file.write(b"x")
    with pytest.raises(LayoutMismatch, match="format"):
        SharedMemoryTransport().connect(receiver.export(), sender_id="p", block_bytes=BLOCK_BYTES)


def test_hosts_differ_by_mount(tmp_path: Path, receiver: PoolReceiver) -> None:
    assert shared_memory_identity(SHM) == shared_memory_identity(SHM)
    assert shared_memory_identity(SHM) != shared_memory_identity(tmp_path)
    with pytest.raises(WrongHost):
        SharedMemoryTransport(tmp_path).connect(
            receiver.export(), sender_id="p", block_bytes=BLOCK_BYTES
        )


@pytest.mark.parametrize("worker_id", ["decode-0", "a/b", "..", "", "ü ñ.5", "x%2F"])
def test_any_worker_id_makes_a_file_name_of_its_own(worker_id: str) -> None:
    name = segment.segment_name("tandem", worker_id, 5)
    assert "/" not in name
    assert Path(name).name == name


def test_a_worker_id_that_is_too_long_is_refused() -> None:
    with pytest.raises(ExportUnavailable, match="too long"):
        segment.segment_name("tandem", "w" * 300, 1)


def test_the_pool_takes_a_tensor_like_view(receiver: PoolReceiver) -> None:
    rows = np.frombuffer(receiver.buffer(), np.float32).reshape(NUM_BLOCKS, -1)
    rows[3] = 1.5
    assert block_of(receiver.buffer(), 3) == np.full(BLOCK_BYTES // 4, 1.5, np.float32).tobytes()
