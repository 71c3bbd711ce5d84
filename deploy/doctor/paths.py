"""What a way between two pools of this machine is worth, by trying it with two processes."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from deploy.doctor.far_side import FarSide
from deploy.doctor.places import (
    BLOCK_BYTES,
    GENERATION,
    NUM_BLOCKS,
    Place,
    makers_at,
    source_at,
)
from kvtransfer.device import KvSource
from kvtransfer.errors import TransferError
from kvtransfer.protocol import BlockMoves, KvSender
from kvtransfer.tcp_door import DoorSettings
from runtime.clock import Clock
from runtime.errors import StartupError

# Pushes of everything, and of one block: so many, or as many as the time allows.
_MAX_ROUNDS: Final = 8
_ROUNDS_S: Final = 1.0
_MAX_SINGLE_BLOCKS: Final = 50
_SINGLE_BLOCKS_S: Final = 0.5
_PUSH_TIMEOUT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Path:
    """One transport from one place to another, in the direction in which blocks are pushed."""

    source: str
    target: str
    transport: str
    # Of the fastest of a few pushes of 64 MiB; None where it does not work.
    bytes_per_s: float | None = None
    # From the call to the published block of 1 MiB, median; None likewise.
    block_latency_s: float | None = None
    # Where it does not work: why, and what to do.
    problem: str | None = None
    # A worker that is told to use it does not start, whatever else it may use.
    stops_worker: bool = False

    @property
    def works(self) -> bool:
        return self.bytes_per_s is not None


def measure(source: Place, target: Place, name: str, host: str, clock: Clock) -> Path:
    """Try one way with a second process that owns the target; takes seconds.

    What goes wrong is said in the answer.
    """
    door = DoorSettings(host)
    places = str(source), str(target)
    try:
        transport = makers_at(source, door)[name]()
    except (TransferError, StartupError) as error:
        return Path(*places, name, problem=str(error), stops_worker=True)
    try:
        with FarSide(target, name, door) as far_side:
            export = far_side.export()
            problem = transport.can_reach(export)
            if problem is not None:
                return Path(*places, name, problem=problem)
            sender = transport.connect(export, sender_id="doctor#1", block_bytes=BLOCK_BYTES)
            try:
                measured = _measured(sender, source_at(source), far_side.verify, clock)
            finally:
                sender.close()
    except (TransferError, StartupError) as error:
        return Path(*places, name, problem=str(error))
    return Path(*places, name, *measured)


def used_path(paths: Sequence[Path], min_bytes_per_s: float) -> Path | None:
    """What a prefill worker would take: the first, in its order, that works and is fast enough."""
    for path in paths:
        if path.bytes_per_s is not None and path.bytes_per_s >= min_bytes_per_s:
            return path
    return None


def _measured(
    sender: KvSender, source: KvSource, verify: Callable[[], None], clock: Clock
) -> tuple[float, float]:
    """Bytes per second, and seconds for one block. Raises: TransferError."""
    everything = range(NUM_BLOCKS)
    fastest_s = min(_timed(sender, source, everything, _MAX_ROUNDS, _ROUNDS_S, clock))
    verify()
    singles = _timed(sender, source, range(1), _MAX_SINGLE_BLOCKS, _SINGLE_BLOCKS_S, clock)
    return NUM_BLOCKS * BLOCK_BYTES / max(fastest_s, 1e-9), statistics.median(singles)


def _timed(
    sender: KvSender,
    source: KvSource,
    blocks: range,
    max_rounds: int,
    budget_s: float,
    clock: Clock,
) -> list[float]:
    ids = tuple(blocks)
    moves = BlockMoves("doctor", ids, ids, (GENERATION,) * len(ids))
    until_s = clock.now() + budget_s
    times: list[float] = []
    while len(times) < max_rounds and (not times or clock.now() < until_s):
        started_at_s = clock.now()
        sender.push(source, moves, timeout_s=_PUSH_TIMEOUT_S)
        times.append(clock.now() - started_at_s)
    return times
