"""The contract between a KV pool that is written and the workers that write it.

The receiver (decode worker) exports its whole pool once. For each request it grants blocks under a
generation and hands both to the sender (prefill worker), which pushes the bytes to their final
place. A block counts as arrived only when its header carries the granted generation; the header is
written after the bytes. A revoked block may still be written by a sender that checked before: its
owner keeps it in quarantine until `quarantine_clear` says that no one can.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from kvtransfer.device import KvSource
from kvtransfer.errors import ChecksumMismatch, GrantWithdrawn
from runtime.clock import Clock
from scheduling.kv_export import KvExport

# Lists are convenient; an array is cheaper where one poll covers many blocks.
Ids: TypeAlias = Sequence[int] | npt.NDArray[np.int64]
# Copies the second argument's bytes over the first's; both flat, of one length.
CopyBytes: TypeAlias = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.uint8]], None]


@dataclass(frozen=True, slots=True)
class BlockMoves:
    """Blocks of one transfer to push together, in the order of the tokens they hold."""

    transfer_id: str
    src_block_ids: tuple[int, ...]
    dst_block_ids: tuple[int, ...]
    # The generation under which each target block was granted.
    generations: tuple[int, ...]
    # Index within the transfer of the first block: where sampling of checksums continues.
    first_index: int = 0

    def __post_init__(self) -> None:
        lengths = {len(self.src_block_ids), len(self.dst_block_ids), len(self.generations)}
        if len(lengths) > 1:
            raise ValueError("source ids, target ids and generations must have one length")
        if len(set(self.dst_block_ids)) < len(self.dst_block_ids):
            raise ValueError("a target block appears twice in one push")
        if min(self.generations, default=1) < 1:
            # 0 in the shared table means "granted to nobody" and must match no one.
            raise ValueError("a generation is at least 1")

    @property
    def num_blocks(self) -> int:
        return len(self.dst_block_ids)


@dataclass(frozen=True, slots=True)
class PushReceipt:
    """What a push did. The blocks are published; the source may be reused."""

    num_blocks: int
    num_bytes: int
    # Contiguous copies it took; the fewer the faster.
    num_copies: int
    num_checksums: int
    elapsed_s: float
    # Filled in where the transport was chosen.
    transport: str = ""


@dataclass(frozen=True, slots=True)
class Arrival:
    """What has arrived of the blocks asked for."""

    # Sound blocks of the asked generation; never counts a damaged or a stale one.
    num_arrived: int
    # Every block asked for has arrived and is sound.
    is_complete: bool
    # Arrived, but with other bytes than their checksum says.
    damaged_block_ids: tuple[int, ...] = ()
    # No longer granted under the asked generation: the asker's own knowledge is out of date.
    stale_block_ids: tuple[int, ...] = ()
    # Of a complete one: by which transport the bytes came.
    transport: str = ""

    def require_sound(self) -> None:
        """Raises: ChecksumMismatch or GrantWithdrawn where these blocks can never be used."""
        if self.damaged_block_ids:
            raise ChecksumMismatch(self.damaged_block_ids)
        if self.stale_block_ids:
            raise GrantWithdrawn(self.stale_block_ids)


class KvReceiver(Protocol):
    """The owner of an exported pool. Calls come from one thread."""

    def export(self) -> KvExport: ...

    def buffer(self) -> memoryview:
        """The pool, writable, num_blocks * block_bytes long; lives as long as any view of it.

        Raises: ValueError for a pool in the memory of a device.
        """
        ...

    def memory(self) -> KvSource:
        """The same, wherever it lies. A device's may go on behind the blocks of the pool."""
        ...

    def expect(self, block_ids: Ids, generations: Ids) -> None:
        """Grant blocks. A block's generation must grow with every grant, and is at least 1.

        The same grant twice is harmless.
        Raises: StaleGeneration, LayoutMismatch for an id outside the pool.
        """
        ...

    def poll(self, block_ids: Ids, generations: Ids) -> Arrival:
        """What has arrived, without waiting; verifies each block's checksum once."""
        ...

    def revoke(self, block_ids: Ids) -> None:
        """Refuse from now on whoever holds the current grant. Twice is harmless."""
        ...

    def quarantine_clear(self, block_ids: Ids) -> bool:
        """True when no sender can write these revoked blocks any more: they may be reused."""
        ...

    def forget_sender(self, sender_id: str) -> bool:
        """Drop what a dead sender left behind; False while it lives and is writing."""
        ...

    def close(self) -> None:
        """End the export. Senders get PeerGone; views of the buffer stay valid. Twice is fine."""
        ...


def never() -> bool:
    """The default of `should_stop`."""
    return False


class KvSender(Protocol):
    """A connection to one receiver. Calls come from one thread at a time."""

    def push(
        self,
        source: KvSource,
        moves: BlockMoves,
        *,
        timeout_s: float,
        should_stop: Callable[[], bool] = never,
    ) -> PushReceipt:
        """Copy whole blocks of `source`, the sender's pool, to their place and publish them.

        `should_stop` is asked between batches. After any return nothing is read from `source` or
        written to the peer any more.
        Raises: StaleGeneration, PeerGone, StaleIncarnation, TransferTimeout, TransferCancelled,
        LayoutMismatch; DeviceFailed, CopyStuck over a device, where what was said of the return
        holds for the peer's grants only. Blocks published before the error stay published.
        """
        ...

    def check(self) -> None:
        """Raises: PeerGone, StaleIncarnation where the receiver no longer lives."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """Whether a transport works here and how fast its real path is."""

    transport: str
    is_available: bool
    # Measured over the path that requests will take; None where it is not available.
    bytes_per_s: float | None
    # One line: what was measured, or why it cannot be used and what to do.
    detail: str


class Transport(Protocol):
    """One way to move blocks. Cheap to make; holds nothing until asked."""

    @property
    def name(self) -> str: ...

    def create_receiver(
        self, num_blocks: int, block_bytes: int, worker_id: str, incarnation: int
    ) -> KvReceiver:
        """Allocate and export a pool. Raises: ExportUnavailable."""
        ...

    def can_reach(self, export: KvExport) -> str | None:
        """None where a connection is worth trying, else the reason why not. Connects to nothing.

        Asked about one door: the export's own transport is this one.
        """
        ...

    def connect(self, export: KvExport, *, sender_id: str, block_bytes: int) -> KvSender:
        """Join an export; `block_bytes` is the sender's own, `sender_id` names one life of it.

        Raises: WrongHost, LayoutMismatch, PeerGone, StaleIncarnation, ExportUnavailable.
        """
        ...

    def probe(self, clock: Clock) -> ProbeReport:
        """Measure the real path with a small pool. Never raises a TransferError."""
        ...
