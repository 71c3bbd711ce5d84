"""Measures a path over which requests will go, before any request depends on it.

`measure_path` takes the real way to one peer, into blocks that every pool sets aside for it;
`measure_transport` tries a transport on this machine alone.
"""

import os
from collections.abc import Callable
from typing import Final

from kvtransfer.device import KvSource, num_bytes_of, read_bytes
from kvtransfer.errors import TransferError, TransferTimeout
from kvtransfer.protocol import BlockMoves, KvReceiver, KvSender, ProbeReport, Transport
from runtime.clock import Clock, wall_time_ns
from scheduling.kv_export import SCRATCH_GENERATION, KvExport

_NUM_BLOCKS: Final = 64
_BLOCK_BYTES: Final = 256 << 10
_NUM_ROUNDS: Final = 3
_TIMEOUT_S: Final = 10.0
# What is set aside in a pool: enough that setting up does not count, little beside any pool.
_SCRATCH_BYTES: Final = 4 << 20
_MAX_SCRATCH_BLOCKS: Final = 4096
_NUM_PATH_ROUNDS: Final = 4
# A path that is slower than this allows is known to be slow by then.
_PATH_TIMEOUT_S: Final = 2.0


def num_scratch_blocks(block_bytes: int) -> int:
    """How many blocks a pool sets aside to be measured with."""
    return min(max(1, _SCRATCH_BYTES // block_bytes), _MAX_SCRATCH_BLOCKS)


def measure_path(
    sender: KvSender, export: KvExport, source: KvSource, clock: Clock
) -> float | None:
    """Bytes per second of the fastest of a few pushes to this peer, each answered or published.

    Takes two seconds at most. None where the pool sets no blocks aside. The bytes are whatever
    lies at the beginning of `source`, the sender's pool; nobody reads them.
    Raises: what a push raises, but no TransferTimeout.
    """
    count = export.num_scratch_blocks
    num_source_blocks = num_bytes_of(source) // export.block_bytes
    if not count or not num_source_blocks:
        return None
    moves = BlockMoves(
        "probe",
        tuple(index % num_source_blocks for index in range(count)),
        tuple(range(export.num_blocks - count, export.num_blocks)),
        (SCRATCH_GENERATION,) * count,
    )
    until_s = clock.now() + _PATH_TIMEOUT_S
    fastest = 0.0
    for _ in range(_NUM_PATH_ROUNDS):
        started_at_s = clock.now()
        num_done = count
        try:
            sender.push(source, moves, timeout_s=until_s - started_at_s)
        except TransferTimeout as error:
            num_done = error.num_blocks_done
        now = clock.now()
        elapsed_s = max(now - started_at_s, 1e-9)
        fastest = max(fastest, num_done * export.block_bytes / elapsed_s)
        if now >= until_s:
            break
    return fastest


def measure_transport(
    transport: Transport, clock: Clock, memory_of: Callable[[bytes], KvSource] = memoryview
) -> ProbeReport:
    """Push 16 MiB a few times through a pool of its own; the fastest round counts.

    `memory_of` puts bytes to be pushed where this transport takes them from.
    """
    try:
        receiver = transport.create_receiver(
            _NUM_BLOCKS, _BLOCK_BYTES, f"probe-{os.getpid()}", wall_time_ns()
        )
        try:
            sender = transport.connect(
                receiver.export(), sender_id=f"probe-{os.getpid()}", block_bytes=_BLOCK_BYTES
            )
            try:
                fastest_s = min(
                    _timed_round(receiver, sender, clock, generation, memory_of)
                    for generation in range(1, _NUM_ROUNDS + 1)
                )
            finally:
                sender.close()
        finally:
            receiver.close()
    except TransferError as error:
        return ProbeReport(transport.name, False, None, str(error))
    num_bytes = _NUM_BLOCKS * _BLOCK_BYTES
    speed = num_bytes / max(fastest_s, 1e-9)
    detail = f"{num_bytes >> 20} MiB in {fastest_s * 1e3:.2f} ms, bytes compared"
    return ProbeReport(transport.name, True, speed, detail)


def _timed_round(
    receiver: KvReceiver,
    sender: KvSender,
    clock: Clock,
    generation: int,
    memory_of: Callable[[bytes], KvSource],
) -> float:
    block_ids = tuple(range(_NUM_BLOCKS))
    generations = (generation,) * _NUM_BLOCKS
    content = bytes([generation]) * (_NUM_BLOCKS * _BLOCK_BYTES)
    source = memory_of(content)
    receiver.expect(block_ids, generations)
    moves = BlockMoves("probe", block_ids, block_ids, generations)
    started_at_s = clock.now()
    sender.push(source, moves, timeout_s=_TIMEOUT_S)
    arrival = receiver.poll(block_ids, generations)
    elapsed_s = clock.now() - started_at_s
    arrival.require_sound()
    if not arrival.is_complete or read_bytes(receiver.memory(), 0, len(content)) != content:
        raise _ProbeMismatch()
    return elapsed_s


class _ProbeMismatch(TransferError):
    """The transport said that it delivered, and the bytes are not there."""

    def __init__(self) -> None:
        super().__init__("the probe's bytes arrived incomplete; do not use this transport here")
