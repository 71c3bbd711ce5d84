"""Measures a transport over the path that requests take, before any request depends on it."""

import os
from typing import Final

from kvtransfer.errors import TransferError
from kvtransfer.protocol import BlockMoves, KvReceiver, KvSender, ProbeReport, Transport
from runtime.clock import Clock, wall_time_ns

_NUM_BLOCKS: Final = 64
_BLOCK_BYTES: Final = 256 << 10
_NUM_ROUNDS: Final = 3
_TIMEOUT_S: Final = 10.0


def measure_transport(transport: Transport, clock: Clock) -> ProbeReport:
    """Push 16 MiB a few times through a pool of its own; the fastest round counts."""
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
                    _timed_round(receiver, sender, clock, generation)
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


def _timed_round(receiver: KvReceiver, sender: KvSender, clock: Clock, generation: int) -> float:
    block_ids = tuple(range(_NUM_BLOCKS))
    generations = (generation,) * _NUM_BLOCKS
    source = bytes([generation]) * (_NUM_BLOCKS * _BLOCK_BYTES)
    receiver.expect(block_ids, generations)
    moves = BlockMoves("probe", block_ids, block_ids, generations)
    started_at_s = clock.now()
    sender.push(memoryview(source), moves, timeout_s=_TIMEOUT_S)
    arrival = receiver.poll(block_ids, generations)
    elapsed_s = clock.now() - started_at_s
    arrival.require_sound()
    if not arrival.is_complete or receiver.buffer() != source:
        raise _ProbeMismatch()
    return elapsed_s


class _ProbeMismatch(TransferError):
    """The transport said that it delivered, and the bytes are not there."""

    def __init__(self) -> None:
        super().__init__("the probe's bytes arrived incomplete; do not use this transport here")
