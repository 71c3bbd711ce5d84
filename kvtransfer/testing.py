"""For tests: pools with known bytes, damaged ones, stalls and deaths halfway."""

import enum
import itertools
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kvtransfer.batches import plain_copy
from kvtransfer.cuda_ipc import CudaIpcTransport
from kvtransfer.device import KvSource, read_bytes, write_bytes
from kvtransfer.errors import (
    ExportUnavailable,
    LayoutMismatch,
    LinkBroken,
    PathTooSlow,
    PeerGone,
    StaleIncarnation,
    WrongHost,
)
from kvtransfer.protocol import (
    BlockMoves,
    KvReceiver,
    KvSender,
    ProbeReport,
    PushReceipt,
    Transport,
    never,
)
from kvtransfer.staged_tcp import StagedTcpTransport
from runtime.clock import Clock
from scheduling.kv_export import KvExport

# The longest that anything here waits: a test that hangs fails instead.
PATIENCE_S = 30.0

_Bytes: TypeAlias = npt.NDArray[np.uint8]


def patterned_pool(num_blocks: int, block_bytes: int, seed: int) -> bytearray:
    """A pool in which no two aligned words are equal, the same for equal arguments."""
    num_words = -(-num_blocks * block_bytes // 8)
    words = np.arange(num_words, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words ^= np.uint64(seed * 0x5851F42D4C957F2D % (1 << 64))
    return bytearray(words.tobytes()[: num_blocks * block_bytes])


def damaging_copy(target: _Bytes, source: _Bytes) -> None:
    """A copy that flips one bit on the way, after the checksum was taken."""
    plain_copy(target, source)
    target[len(target) // 2] ^= 1


# The pools of a `TransportPair`.
PAIR_NUM_BLOCKS, PAIR_BLOCK_BYTES = 16, 512

_lives = itertools.count(1)

# A port that nobody has on an address of one's own.
KV_PORT = 7790


def own_loopback_host() -> str:
    """An address of this machine that no other process of the tests listens on."""
    pid = os.getpid()
    return f"127.{64 + (pid >> 16) % 64}.{pid >> 8 & 255}.{pid & 255}"


def next_incarnation() -> int:
    """Larger than every one before it in this process."""
    return next(_lives)


def moves_of(
    src: tuple[int, ...], dst: tuple[int, ...], generation: int = 1, transfer_id: str = "r/0"
) -> BlockMoves:
    """A push whose blocks are all granted under one generation."""
    return BlockMoves(transfer_id, src, dst, (generation,) * len(dst))


class TransportPair:
    """A receiver and a connected sender of one transport, and the sender's patterned pool."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.worker_id = f"decode/{os.getpid()}"
        self.receiver: KvReceiver = transport.create_receiver(
            PAIR_NUM_BLOCKS, PAIR_BLOCK_BYTES, self.worker_id, next_incarnation()
        )
        self.source = patterned_pool(PAIR_NUM_BLOCKS, PAIR_BLOCK_BYTES, seed=1)
        # The same where this transport takes it from.
        self.source_memory: KvSource = memoryview(self.source)
        if isinstance(transport, CudaIpcTransport | StagedTcpTransport):
            self.source_memory = transport.new_pool(bytes(self.source))
        try:
            self.sender: KvSender = self.connect()
        except BaseException:
            self.receiver.close()
            raise

    def connect(self, sender_id: str = "prefill-0#1") -> KvSender:
        return self.transport.connect(
            self.receiver.export(), sender_id=sender_id, block_bytes=PAIR_BLOCK_BYTES
        )

    def push(self, moves: BlockMoves, timeout_s: float = PATIENCE_S) -> None:
        self.sender.push(self.source_memory, moves, timeout_s=timeout_s)

    def source_block(self, block_id: int) -> bytes:
        return bytes(self.source[block_id * PAIR_BLOCK_BYTES : (block_id + 1) * PAIR_BLOCK_BYTES])

    def target_block(self, block_id: int) -> bytes:
        return read_bytes(self.receiver.memory(), block_id * PAIR_BLOCK_BYTES, PAIR_BLOCK_BYTES)

    def set_target(self, start: int, data: bytes) -> None:
        """Write into the receiver's pool, as its owner does."""
        write_bytes(self.receiver.memory(), start, data)

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


class StallingCopy:
    """A copy that stops halfway until it is released."""

    def __init__(self) -> None:
        self.has_begun = threading.Event()
        self.may_end = threading.Event()

    def __call__(self, target: _Bytes, source: _Bytes) -> None:
        half = len(target) // 2
        plain_copy(target[:half], source[:half])
        self.has_begun.set()
        self.may_end.wait(PATIENCE_S)
        plain_copy(target[half:], source[half:])


class DyingCopy:
    """Kills its own process (SIGKILL) halfway through the n-th copy, counted from 1."""

    def __init__(self, at_copy: int) -> None:
        self._copies_left = at_copy

    def __call__(self, target: _Bytes, source: _Bytes) -> None:
        self._copies_left -= 1
        if self._copies_left == 0:
            half = len(target) // 2
            plain_copy(target[:half], source[:half])
            os.kill(os.getpid(), signal.SIGKILL)
        plain_copy(target, source)


@dataclass(frozen=True, slots=True)
class _Hold:
    is_reached: threading.Event
    is_over: threading.Event


class FaultyTransport:
    """Any transport, with faults between it and its user; switches may be set at any time."""

    def __init__(self, inner: Transport) -> None:
        self._inner = inner
        # The next connects and pushes raise these, oldest first.
        self.connect_errors: list[Exception] = []
        self.push_errors: list[Exception] = []
        # The next senders to be closed raise these, once they are.
        self.close_errors: list[Exception] = []
        self._hold_by_worker: dict[str, _Hold] = {}
        # What was attempted, in order.
        self.connects: list[KvExport] = []
        self.pushes: list[BlockMoves] = []
        self.num_closed_senders = 0

    @property
    def name(self) -> str:
        return self._inner.name

    def hold(self, worker_id: str) -> None:
        """From now on pushes to this worker wait before they begin."""
        self._hold_by_worker[worker_id] = _Hold(threading.Event(), threading.Event())

    def wait_until_held(self, worker_id: str) -> None:
        """Wait for a push to stand before the hold."""
        if not self._hold_by_worker[worker_id].is_reached.wait(PATIENCE_S):
            raise TimeoutError(f"no push to {worker_id} began")

    def release(self) -> None:
        """Let all held pushes go on, and all later ones pass."""
        for hold in self._hold_by_worker.values():
            hold.is_over.set()

    def pass_hold(self, worker_id: str) -> None:
        """Called by a push before it begins."""
        hold = self._hold_by_worker.get(worker_id)
        if hold is not None:
            hold.is_reached.set()
            hold.is_over.wait(PATIENCE_S)

    def create_receiver(
        self, num_blocks: int, block_bytes: int, worker_id: str, incarnation: int
    ) -> KvReceiver:
        return self._inner.create_receiver(num_blocks, block_bytes, worker_id, incarnation)

    def can_reach(self, export: KvExport) -> str | None:
        return self._inner.can_reach(export)

    def connect(self, export: KvExport, *, sender_id: str, block_bytes: int) -> KvSender:
        self.connects.append(export)
        if self.connect_errors:
            raise self.connect_errors.pop(0)
        inner = self._inner.connect(export, sender_id=sender_id, block_bytes=block_bytes)
        return _FaultySender(self, inner, export.worker_id)

    def probe(self, clock: Clock) -> ProbeReport:
        return self._inner.probe(clock)


class _FaultySender:
    def __init__(self, faults: FaultyTransport, inner: KvSender, worker_id: str) -> None:
        self._faults = faults
        self._inner = inner
        self._worker_id = worker_id

    def push(
        self,
        source: KvSource,
        moves: BlockMoves,
        *,
        timeout_s: float,
        should_stop: Callable[[], bool] = never,
    ) -> PushReceipt:
        self._faults.pushes.append(moves)
        self._faults.pass_hold(self._worker_id)
        if self._faults.push_errors:
            raise self._faults.push_errors.pop(0)
        return self._inner.push(source, moves, timeout_s=timeout_s, should_stop=should_stop)

    def check(self) -> None:
        self._inner.check()

    def close(self) -> None:
        self._faults.num_closed_senders += 1
        self._inner.close()
        if self._faults.close_errors:
            raise self._faults.close_errors.pop(0)


class WayState(enum.Enum):
    """What is the matter with one way into a pool."""

    WORKS = enum.auto()
    NOT_OFFERED = enum.auto()
    OUT_OF_REACH = enum.auto()
    PEER_GONE = enum.auto()
    UNAVAILABLE = enum.auto()
    WRONG_HOST = enum.auto()
    STALE = enum.auto()
    OTHER_LAYOUT = enum.auto()
    LINK_BROKEN = enum.auto()
    # It connects, and is refused by whoever measures it.
    TOO_SLOW = enum.auto()


class OneWay:
    """A transport that only connects, or says why it does not; moves nothing."""

    def __init__(self, name: str, state: WayState) -> None:
        self.name = name
        self.state = state
        self.num_connects = 0
        self.num_open = 0

    def measure(self, sender: KvSender, export: KvExport) -> float | None:
        """See `Measure`, of this way."""
        if self.state is WayState.TOO_SLOW:
            raise PathTooSlow(export.worker_id, "1 MB/s")
        return 1e9

    def create_receiver(
        self, num_blocks: int, block_bytes: int, worker_id: str, incarnation: int
    ) -> KvReceiver:
        raise TypeError("this one only connects")

    def can_reach(self, export: KvExport) -> str | None:
        return "out of reach" if self.state is WayState.OUT_OF_REACH else None

    def connect(self, export: KvExport, *, sender_id: str, block_bytes: int) -> KvSender:
        self.num_connects += 1
        worker_id, life = export.worker_id, export.incarnation
        match self.state:
            case WayState.PEER_GONE:
                raise PeerGone(worker_id, life)
            case WayState.UNAVAILABLE:
                raise ExportUnavailable("no right", "run as one user")
            case WayState.WRONG_HOST:
                raise WrongHost(worker_id, "there", "here")
            case WayState.STALE:
                raise StaleIncarnation(worker_id, life, life + 1)
            case WayState.OTHER_LAYOUT:
                raise LayoutMismatch("other blocks")
            case WayState.LINK_BROKEN:
                raise LinkBroken(worker_id, "reset")
        return _IdleSender(self)

    def probe(self, clock: Clock) -> ProbeReport:
        raise TypeError("this one only connects")


class _IdleSender:
    def __init__(self, way: OneWay) -> None:
        self._way = way
        way.num_open += 1

    def push(
        self,
        source: KvSource,
        moves: BlockMoves,
        *,
        timeout_s: float,
        should_stop: Callable[[], bool] = never,
    ) -> PushReceipt:
        raise TypeError("this one only connects")

    def check(self) -> None:
        """The peer lives."""

    def close(self) -> None:
        self._way.num_open -= 1
