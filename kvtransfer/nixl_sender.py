"""The sender's side of NIXL: ask for a batch, write it, say that it is written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from kvtransfer.batches import Batch, PushSettings, TargetPool, cut_batches, source_blocks
from kvtransfer.device import KvSource
from kvtransfer.errors import (
    ExportUnavailable,
    PeerGone,
    StaleGeneration,
    TransferCancelled,
    TransferError,
    TransferTimeout,
)
from kvtransfer.nixl_agent import NixlAgent, NixlFailed
from kvtransfer.protocol import BlockMoves, PushReceipt, never
from kvtransfer.tcp_connect import dial, patience_of
from kvtransfer.tcp_connection import Connection
from kvtransfer.tcp_frames import (
    ANSWER_BYTES,
    MAX_BATCH_BLOCKS,
    MEMORY_HEAD_BYTES,
    Answer,
    FrameError,
    Verdict,
    pack_answer,
    pack_batch,
    read_answer,
    read_memory,
    read_memory_head,
)
from kvtransfer.tcp_stream import ConnectionLost, Stream
from runtime.clock import Clock, MonotonicClock
from scheduling.kv_export import KvExport

# The receiver makes an agent for us first: UCX looks at every device of the machine.
_DIAL_TIMEOUT_S: Final = 30.0
# How late a write under way may notice a cancel, its deadline, or the receiver's end.
_SLICE_S: Final = 0.1


@dataclass(slots=True)
class NixlLine:
    """One connection, our agent, and where the receiver's pool begins in its memory."""

    stream: Stream
    agent: NixlAgent
    base: int

    def close(self) -> None:
        self.agent.close()


def _dial(export: KvExport, sender_id: str) -> NixlLine:
    patience = patience_of(MonotonicClock(), _DIAL_TIMEOUT_S, export)
    stream = dial(export, sender_id, _DIAL_TIMEOUT_S)
    try:
        base, num_bytes = read_memory_head(stream.receive(MEMORY_HEAD_BYTES, patience))
        metadata = read_memory(stream.receive(num_bytes, patience))
        agent = NixlAgent(sender_id)
        try:
            agent.add_peer(metadata)
        except BaseException:
            agent.close()
            raise
    except (ConnectionLost, FrameError) as error:
        stream.reset()
        raise PeerGone(export.worker_id, export.incarnation) from error
    except NixlFailed as error:
        stream.reset()
        problem = f"NIXL finds no way to {export.worker_id} ({error})"
        raise ExportUnavailable(problem, "give both another transport in --transports") from error
    except BaseException:
        stream.reset()
        raise
    return NixlLine(stream, agent, base)


class NixlSender:
    """See `KvSender`."""

    def __init__(
        self, export: KvExport, sender_id: str, settings: PushSettings, clock: Clock
    ) -> None:
        self._export = export
        self._settings = settings
        self._clock = clock
        self._connection = Connection(export, lambda: _dial(export, sender_id))

    def push(
        self,
        source: KvSource,
        moves: BlockMoves,
        *,
        timeout_s: float,
        should_stop: Callable[[], bool] = never,
    ) -> PushReceipt:
        self._connection.check()
        block_bytes = self._export.block_bytes
        pool = source_blocks(source, moves, block_bytes)
        target = TargetPool(self._export.num_blocks, block_bytes, MAX_BATCH_BLOCKS)
        batches = cut_batches(pool, moves, target, self._settings)
        line = self._connection.line()
        push = _NixlPush(line, moves, pool, self._clock, timeout_s, should_stop)
        try:
            line.agent.register(pool.ctypes.data, pool.size)
            num_copies = num_checksums = 0
            for number, batch in enumerate(batches):
                push.write_batch(number, batch)
                num_copies += len(batch.runs)
                num_checksums += len(batch.blocks.sampled)
        except (ConnectionLost, FrameError, NixlFailed) as error:
            raise self._connection.loss(str(error)) from error
        except BaseException:
            if push.is_out_of_step:
                # Closes the agent too: nothing of the source is read any more.
                self._connection.drop()
            raise
        return PushReceipt(
            num_blocks=push.num_done,
            num_bytes=push.num_done * block_bytes,
            num_copies=num_copies,
            num_checksums=num_checksums,
            elapsed_s=self._clock.now() - push.started_at_s,
        )

    def check(self) -> None:
        self._connection.check()

    def close(self) -> None:
        self._connection.close()


class _NixlPush:
    """One push under way."""

    def __init__(
        self,
        line: NixlLine,
        moves: BlockMoves,
        pool: npt.NDArray[np.uint8],
        clock: Clock,
        timeout_s: float,
        should_stop: Callable[[], bool],
    ) -> None:
        self._line = line
        self._moves = moves
        # [num_blocks, block_bytes]
        self._pool = pool
        self._clock = clock
        self.started_at_s = clock.now()
        self._until_s = self.started_at_s + timeout_s
        self._should_stop = should_stop
        self.num_done = 0
        # The receiver waits for the rest of a batch: the connection cannot be used again.
        self.is_out_of_step = False

    def write_batch(self, number: int, batch: Batch) -> None:
        """Have one batch written and published. Raises: StaleGeneration and its like."""
        self._go_on()
        stream = self._line.stream
        self.is_out_of_step = True
        frame = pack_batch(number, self._moves.transfer_id, batch.blocks)
        stream.send([memoryview(frame)], self._go_on)
        answer = self._answer_to(number)
        if answer.verdict is Verdict.GRANTED:
            self._write(batch)
            written = pack_answer(Answer(number, Verdict.WRITTEN))
            stream.send([memoryview(written)], self._go_on)
            answer = self._answer_to(number)
        self.is_out_of_step = False
        if answer.verdict is Verdict.STALE:
            tags = batch.blocks.tags[batch.blocks.dst == answer.block_id]
            tag = int(tags[0]) if len(tags) else 0
            raise StaleGeneration(answer.block_id, tag, answer.expected or None)
        if answer.verdict is not Verdict.PUBLISHED:
            raise FrameError("what came is no verdict on a batch")
        self.num_done += batch.num_blocks

    def _write(self, batch: Batch) -> None:
        size, source, target = self._pool.shape[1], self._pool.ctypes.data, self._line.base
        local = [(source + run.src_block * size, run.num_blocks * size) for run in batch.runs]
        remote = [(target + run.dst_block * size, run.num_blocks * size) for run in batch.runs]
        write = self._line.agent.begin_write(local, remote)
        try:
            clock = MonotonicClock()
            look_at_s = clock.now() + _SLICE_S
            while not write.is_done():
                if clock.now() >= look_at_s:
                    look_at_s += _SLICE_S
                    self._go_on()
                    if self._line.stream.has_news():
                        raise ConnectionLost("the receiver ended it in the middle of a write")
        finally:
            write.release()

    def _answer_to(self, number: int) -> Answer:
        answer = read_answer(self._line.stream.receive(ANSWER_BYTES, self._go_on))
        if answer.sequence_number != number:
            raise FrameError("answers come out of order")
        return answer

    def _go_on(self) -> None:
        """Between batches, and now and then within one."""
        is_late = self._clock.now() > self._until_s
        if is_late or self._should_stop():
            kind: type[TransferError] = TransferTimeout if is_late else TransferCancelled
            raise kind(self._moves.transfer_id, self.num_done, self._moves.num_blocks)
