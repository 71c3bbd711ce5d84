"""The receiver's end of one connection: takes batches and has them written to their final place."""

from collections.abc import Callable
from typing import Final, Protocol, TypeAlias

import numpy as np

from kvtransfer.batches import TaggedBlocks, plain_copy
from kvtransfer.claimed_write import ClaimedWriter
from kvtransfer.doors import OnDevice, ServedPool
from kvtransfer.errors import StaleGeneration
from kvtransfer.pinned_staging import StagedBlocks
from kvtransfer.plan import merge_runs
from kvtransfer.protocol import CopyBytes
from kvtransfer.tcp_frames import (
    BATCH_HEAD_BYTES,
    Answer,
    BatchHead,
    FrameError,
    Verdict,
    pack_answer,
    read_batch_head,
    read_tables,
)
from kvtransfer.tcp_stream import ConnectionLost, Patience, Stream
from runtime.clock import Clock, MonotonicClock
from runtime.logging import get_logger

log = get_logger()

_SCRATCH_BYTES: Final = 256 << 10


class Arrivals(Protocol):
    """How the bytes of one sender's batches come."""

    def greeting(self) -> bytes:
        """What the sender needs to know, sent after the welcome."""
        ...

    def take(self, head: BatchHead, blocks: TaggedBlocks, patience: Patience) -> None:
        """Have the bytes of a granted batch in their place when this returns.

        Raises: ConnectionLost, FrameError; whatever it raises, nothing is written afterwards.
        """
        ...

    def refuse(self, head: BatchHead, patience: Patience) -> None:
        """Get past the bytes of a refused batch, so that the next one is found."""
        ...

    def is_still(self) -> bool:
        """Whether nothing is written any more: asked, from any thread, after CopyStuck. No wait."""
        ...

    def close(self) -> None: ...


# Told of blocks before they appear.
MarkDoor: TypeAlias = Callable[[TaggedBlocks], None]


class Stalled(Exception):
    """A batch did not come in time."""


class TcpLink:
    """One sender's connection. `run` belongs to the link's thread, `abort` to any."""

    def __init__(
        self,
        stream: Stream,
        pool: ServedPool,
        writer: ClaimedWriter,
        batch_timeout_s: float,
        clock: Clock,
    ) -> None:
        self._stream = stream
        self._num_blocks = pool.layout.num_blocks
        self._writer = writer
        self._batch_timeout_s = batch_timeout_s
        self._clock = clock
        # For the log line about a lost connection.
        self._transfer_id: str | None = None

    def run(self, sender_id: str, arrivals: Arrivals, mark_door: MarkDoor) -> None:
        """Take batches until the connection ends; `mark_door` is called before each appears."""
        try:
            self._take_batches(arrivals, mark_door)
        except ConnectionLost as error:
            if self._transfer_id is not None:
                self._log_drop(sender_id, error.problem)
        except FrameError as error:
            self._log_drop(sender_id, error.problem)
        except Stalled:
            self._log_drop(sender_id, f"stalled for {self._batch_timeout_s:g} s")

    def abort(self) -> None:
        """End `run` soon, whatever it waits for."""
        self._stream.abort()

    def _take_batches(self, arrivals: Arrivals, mark_door: MarkDoor) -> None:
        """One after the other: the bytes of each follow it."""
        while True:
            self._stream.wait_readable()
            patience = self._patience()
            head, blocks = self._next_batch(patience)
            self._settle(head, blocks, arrivals, mark_door, patience)

    def _next_batch(self, patience: Patience) -> tuple[BatchHead, TaggedBlocks]:
        """What a sender announces. Raises: ConnectionLost, FrameError, Stalled."""
        head_bytes = self._stream.receive(BATCH_HEAD_BYTES, patience)
        head = read_batch_head(head_bytes, self._num_blocks)
        tables = self._stream.receive(head.num_table_bytes, patience)
        self._transfer_id, blocks = read_tables(head, tables, self._num_blocks)
        return head, blocks

    def _settle(
        self,
        head: BatchHead,
        blocks: TaggedBlocks,
        arrivals: Arrivals,
        mark_door: MarkDoor,
        patience: Patience,
    ) -> None:
        """Have a batch written and published, or refuse it, and say so."""
        is_taken = False

        def take() -> None:
            nonlocal is_taken
            arrivals.take(head, blocks, patience)
            is_taken = True
            mark_door(blocks)

        try:
            self._writer.write(blocks, take)
            answer = Answer(head.sequence_number, Verdict.PUBLISHED)
        except StaleGeneration as error:
            if not is_taken:
                arrivals.refuse(head, patience)
            expected = error.expected or 0
            answer = Answer(head.sequence_number, Verdict.STALE, error.block_id, expected)
        self._stream.send([memoryview(pack_answer(answer))], patience)
        self._transfer_id = None

    def _patience(self) -> Patience:
        until_s = self._clock.now() + self._batch_timeout_s

        def wait_on() -> None:
            if self._clock.now() >= until_s:
                raise Stalled

        return wait_on

    def _log_drop(self, sender_id: str, problem: str) -> None:
        log.warning(
            "kv_link_dropped",
            sender_id=sender_id,
            transfer_id=self._transfer_id,
            problem=problem,
        )


class SocketArrivals:
    """See `Arrivals`: the bytes follow their batch, and the kernel puts them in their place."""

    def __init__(self, stream: Stream, pool: ServedPool, copy_bytes: CopyBytes) -> None:
        self._stream = stream
        self._block_bytes = pool.layout.block_bytes
        self._data = pool.views.data.data
        self._copy_bytes = copy_bytes

    def greeting(self) -> bytes:
        return b""

    def take(self, head: BatchHead, blocks: TaggedBlocks, patience: Patience) -> None:
        ids, size = blocks.dst.tolist(), self._block_bytes
        spans = [
            self._data[dst * size : (dst + num_blocks) * size]
            for _, dst, num_blocks in merge_runs(range(len(ids)), ids)
        ]
        if self._copy_bytes is plain_copy:
            self._stream.receive_into(spans, patience)
            return
        for span in spans:
            staged = bytearray(len(span))
            self._stream.receive_into([memoryview(staged)], patience)
            self._copy_bytes(np.frombuffer(span, np.uint8), np.frombuffer(staged, np.uint8))

    def refuse(self, head: BatchHead, patience: Patience) -> None:
        _read_past(self._stream, head.num_blocks * self._block_bytes, patience)

    def is_still(self) -> bool:
        return True

    def close(self) -> None:
        """Nothing is held."""


class StagedArrivals:
    """See `Arrivals`: the bytes follow their batch, and go on into the memory of a device."""

    def __init__(self, stream: Stream, device: OnDevice, block_bytes: int) -> None:
        self._stream = stream
        self._block_bytes = block_bytes
        self._staged = StagedBlocks(device, block_bytes, MonotonicClock())

    def greeting(self) -> bytes:
        return b""

    def take(self, head: BatchHead, blocks: TaggedBlocks, patience: Patience) -> None:
        self._staged.take(blocks, lambda room: self._stream.receive_into([room], patience))

    def refuse(self, head: BatchHead, patience: Patience) -> None:
        _read_past(self._stream, head.num_blocks * self._block_bytes, patience)

    def is_still(self) -> bool:
        return self._staged.is_still()

    def close(self) -> None:
        self._staged.close()


def _read_past(stream: Stream, num_bytes: int, patience: Patience) -> None:
    scratch = memoryview(bytearray(min(num_bytes, _SCRATCH_BYTES)))
    while num_bytes:
        part = scratch[: min(num_bytes, len(scratch))]
        stream.receive_into([part], patience)
        num_bytes -= len(part)
