"""Shared memory between real processes: what a death, a revocation or a restart leaves behind."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvtransfer import segment
from kvtransfer.errors import ExportUnavailable, LayoutMismatch, WrongHost
from kvtransfer.host import shared_memory_identity
from kvtransfer.protocol import BlockMoves, KvReceiver
from kvtransfer.receiver import PoolReceiver
from kvtransfer.sender_process_testing import PushRefused, SenderProcess, SenderSpec
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.testing import PATIENCE_S, patterned_pool
from runtime.clock import MonotonicClock
from scheduling.ids import Incarnation, WorkerId
from scheduling.kv_export import KvExport

SHM = Path("/dev/shm")
BLOCK_BYTES = 64 << 10
NUM_BLOCKS = 64
SEED = 3
ALL = tuple(range(NUM_BLOCKS))

_lives = itertools.count(1)


def wait_for(condition: Callable[[], bool]) -> None:
    clock = MonotonicClock()
    deadline_at_s = clock.now() + PATIENCE_S
    while not condition():
        assert clock.now() < deadline_at_s, "the condition did not come true in time"


def create(worker_id: str = f"decode-{os.getpid()}") -> PoolReceiver:
    return SharedMemoryTransport().create_receiver(NUM_BLOCKS, BLOCK_BYTES, worker_id, next(_lives))


@pytest.fixture
def receiver() -> Iterator[PoolReceiver]:
    made = create()
    yield made
    made.close()


def spec_for(receiver: KvReceiver) -> SenderSpec:
    return SenderSpec(receiver.export(), "prefill-0#1", NUM_BLOCKS, SEED)


def block_of(pool: memoryview | bytearray, block_id: int) -> bytes:
    return bytes(pool[block_id * BLOCK_BYTES : (block_id + 1) * BLOCK_BYTES])


def reversed_moves(generation: int = 1) -> BlockMoves:
    """Scattered on purpose: every block is a copy of its own."""
    return BlockMoves("r/0", ALL, ALL[::-1], (generation,) * NUM_BLOCKS)


def require_arrived_blocks_right(receiver: KvReceiver, moves: BlockMoves) -> int:
    """Every block that counts as arrived holds the sender's bytes; returns how many there are."""
    source = patterned_pool(NUM_BLOCKS, BLOCK_BYTES, SEED)
    num_arrived = 0
    for src, dst, tag in zip(
        moves.src_block_ids, moves.dst_block_ids, moves.generations, strict=True
    ):
        if receiver.poll([dst], [tag]).is_complete:
            num_arrived += 1
            assert block_of(receiver.buffer(), dst) == block_of(source, src)
    return num_arrived


def test_another_process_pushes_into_place(receiver: PoolReceiver) -> None:
    moves = reversed_moves()
    receiver.expect(moves.dst_block_ids, moves.generations)
    with SenderProcess(spec_for(receiver)) as sender:
        receipt = sender.push(moves)
    assert (receipt.num_blocks, receipt.num_copies) == (NUM_BLOCKS, NUM_BLOCKS)
    assert receiver.poll(moves.dst_block_ids, moves.generations).is_complete
    assert require_arrived_blocks_right(receiver, moves) == NUM_BLOCKS


def test_a_sender_that_dies_in_a_copy_leaves_an_incomplete_transfer(
    receiver: PoolReceiver,
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
    assert receiver.quarantine_clear(moves.dst_block_ids)


def test_a_kill_at_any_moment_never_shows_a_wrong_block(receiver: PoolReceiver) -> None:
    for generation, num_arrived_at_kill in enumerate([1, 20, 50], start=1):
        moves = reversed_moves(generation)
        receiver.expect(moves.dst_block_ids, moves.generations)
        receiver.buffer()[:] = bytes(NUM_BLOCKS * BLOCK_BYTES)
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
        assert receiver.quarantine_clear(moves.dst_block_ids)


def test_quarantine_lasts_while_the_sender_lives_and_ends_with_its_death(
    receiver: PoolReceiver,
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
        assert receiver.forget_sender("prefill-0#1")
        assert receiver.quarantine_clear([4, 5])


def test_a_sender_finds_the_revocation_when_it_comes_out_of_its_copy(
    receiver: PoolReceiver,
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
    receiver: PoolReceiver,
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
            receiver.buffer()[:] = own
            try:
                sender.finish_push()
            except PushRefused as refusal:
                refusals.add(refusal.code)
            assert receiver.buffer() == own
    # Whether one was late enough to be refused is a matter of luck; for any other reason none was.
    assert refusals <= {"kv_stale_generation"}


def test_damage_in_another_process_is_found(receiver: PoolReceiver) -> None:
    receiver.expect([4], [1])
    with SenderProcess(replace(spec_for(receiver), fault="damage")) as sender:
        sender.push(BlockMoves("r/0", (0,), (4,), (1,)))
    assert receiver.poll([4], [1]).damaged_block_ids == (4,)


def test_a_restarted_receiver_refuses_senders_of_its_earlier_life() -> None:
    worker_id = f"restarted-{os.getpid()}"
    first = create(worker_id)
    moves = BlockMoves("r/0", (0,), (0,), (1,))
    with SenderProcess(spec_for(first)) as connected, SenderProcess(spec_for(first)) as late:
        connected.connect()
        first.close()
        second = create(worker_id)
        try:
            second.expect([0], [1])
            for sender in (connected, late):
                with pytest.raises(PushRefused) as caught:
                    sender.push(moves)
                assert caught.value.code == "kv_stale_incarnation"
            assert second.poll([0], [1]).num_arrived == 0
        finally:
            second.close()


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
