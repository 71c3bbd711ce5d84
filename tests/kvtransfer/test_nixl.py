"""NIXL between real processes: what a death in the middle of one-sided writes leaves behind."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kvtransfer.protocol import BlockMoves, KvReceiver
from kvtransfer.sender_process_testing import PushRefused, SenderProcess, SenderSpec
from kvtransfer.testing import PATIENCE_S, patterned_pool
from kvtransfer.whole_pool_testing import wait_for

pytest.importorskip("nixl_cu13", reason="the extra `nixl` is not installed")

BLOCK_BYTES, NUM_BLOCKS, SEED = 256 << 10, 64, 3
ALL = tuple(range(NUM_BLOCKS))
SOURCE = patterned_pool(NUM_BLOCKS, BLOCK_BYTES, SEED)


@pytest.fixture
def receiver() -> Iterator[KvReceiver]:
    from kvtransfer.nixl import NixlTransport

    os.environ.setdefault("UCX_NET_DEVICES", "lo")
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
    made = NixlTransport().create_receiver(NUM_BLOCKS, BLOCK_BYTES, "decode-0", 1)
    yield made
    made.close()


def reversed_moves(generation: int) -> BlockMoves:
    return BlockMoves("r/0", ALL, ALL[::-1], (generation,) * NUM_BLOCKS)


def test_a_sender_is_killed_and_others_are_revoked_and_no_block_is_written_late(
    receiver: KvReceiver,
) -> None:
    own = b"\xa5" * (NUM_BLOCKS * BLOCK_BYTES)
    spec = SenderSpec(
        receiver.export(), "prefill-0#1", NUM_BLOCKS, SEED, max_batch_bytes=4 * BLOCK_BYTES
    )
    refusals: set[str] = set()
    with SenderProcess(spec) as sender:
        sender.connect()
        for generation in range(1, 12):
            moves = reversed_moves(generation)
            receiver.expect(moves.dst_block_ids, moves.generations)
            sender.begin_push(moves)
            # Revoke before, amid and after the push.
            least = generation % 6 * 12

            def has_come(moves: BlockMoves = moves, least: int = least) -> bool:
                arrival = receiver.poll(moves.dst_block_ids, moves.generations)
                assert not arrival.damaged_block_ids
                return arrival.num_arrived >= least

            wait_for(has_come)
            if generation == 11:
                sender.kill()
            receiver.revoke(moves.dst_block_ids)
            wait_for(lambda: receiver.quarantine_clear(ALL))
            receiver.buffer()[:] = own
            if generation < 11:
                try:
                    sender.finish_push()
                except PushRefused as refusal:
                    refusals.add(refusal.code)
            assert receiver.buffer() == own
    assert refusals <= {"kv_stale_generation"}


def test_without_the_package_the_error_names_the_extra() -> None:
    script = (
        "import sys; sys.modules['nixl_cu13'] = None\n"
        "from kvtransfer.nixl import NixlTransport\n"
        "NixlTransport().create_receiver(1, 8, 'decode-0', 1)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert ran.returncode == 1
    assert "ExportUnavailable" in ran.stderr
    assert "tandemserve[nixl]" in ran.stderr
