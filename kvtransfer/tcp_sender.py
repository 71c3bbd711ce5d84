"""The sender's end of a connection: blocks go from the pool to the kernel, batches ahead."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from kvtransfer.batches import Batch, PushSettings, TargetPool, cut_batches, source_blocks
from kvtransfer.device import KvSource
from kvtransfer.errors import (
    StaleGeneration,
    TransferCancelled,
    TransferError,
    TransferTimeout,
)
from kvtransfer.protocol import BlockMoves, PushReceipt, never
from kvtransfer.tcp_connect import dial
from kvtransfer.tcp_connection import Connection
from kvtransfer.tcp_frames import (
    ANSWER_BYTES,
    MAX_BATCH_BLOCKS,
    Answer,
    FrameError,
    Verdict,
    pack_batch,
    read_answer,
)
from kvtransfer.tcp_stream import ConnectionLost, Patience, Stream
from kvtransfer.zerocopy import ZeroCopy
from runtime.clock import Clock
from runtime.logging import get_logger
from scheduling.kv_export import KvExport

log = get_logger()

# Batches that are sent and not answered: enough that the wire never waits for an answer.
MAX_BATCHES_AHEAD: Final = 4
# How long a cancelled or late push waits for the answers to what it sent.
_LAST_ANSWERS_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class TcpLine:
    """A connection, and nothing else."""

    stream: Stream

    def close(self) -> None:
        """Nothing but the stream is held."""


class TcpSender:
    """See `KvSender`. A broken connection is made anew, but never in the middle of a push."""

    def __init__(
        self, export: KvExport, sender_id: str, settings: PushSettings, clock: Clock
    ) -> None:
        self._export = export
        self._settings = settings
        self._clock = clock
        # What the log has heard of zero copy.
        self._told: str | None = None
        self._connection = Connection(
            export, lambda: TcpLine(dial(export, sender_id, zerocopy=settings.zerocopy))
        )

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
        stream = self._connection.line().stream

        def ship(frame: memoryview, batch: Batch, patience: Patience) -> None:
            spans = [pool[src : src + length].reshape(-1).data for src, _, length in batch.runs]
            stream.send_blocks(frame, spans, patience)

        push = AnsweredPush(stream, moves, ship, self._clock, timeout_s, should_stop)
        try:
            receipt = push.run(batches, block_bytes)
        except (ConnectionLost, FrameError) as error:
            raise self._connection.loss(error.problem) from error
        except BaseException:
            # Not answered: the kernel may still read it, and the next push would get the answer.
            if push.is_out_of_step or push.ahead:
                self._connection.drop()
            raise
        self._tell_of_zerocopy(stream)
        return receipt

    def check(self) -> None:
        self._connection.check()

    def close(self) -> None:
        self._connection.close()

    def _tell_of_zerocopy(self, stream: Stream) -> None:
        if self._settings.zerocopy is ZeroCopy.NEVER:
            return
        sends = stream.sends_in_place
        verdict = "used" if sends.has_worked else sends.problem
        if verdict is None or verdict == self._told:
            return
        self._told = verdict
        log.info("kv_tcp_zerocopy", worker_id=self._export.worker_id, verdict=verdict)


# Announces a batch by this frame and has its bytes on their way when it returns.
Ship: TypeAlias = Callable[[memoryview, Batch, Patience], None]


@dataclass(slots=True)
class AnsweredPush:
    """One push under way: batches are shipped, and answered in their order."""

    stream: Stream
    moves: BlockMoves
    ship: Ship
    clock: Clock
    timeout_s: float
    should_stop: Callable[[], bool]
    max_ahead: int = MAX_BATCHES_AHEAD
    started_at_s: float = 0.0
    num_done: int = 0
    # Sent and not answered, oldest first.
    ahead: deque[tuple[int, Batch]] = field(default_factory=deque)
    refusal: Answer | None = None
    refused: Batch | None = None
    # Bytes of a batch are missing, or answers are: the connection cannot be used again.
    is_out_of_step: bool = False

    def run(self, batches: Iterator[Batch], block_bytes: int) -> PushReceipt:
        self.started_at_s = self.clock.now()
        num_copies = num_checksums = 0
        for number, batch in enumerate(batches):
            self._stop_between_batches()
            while len(self.ahead) >= self.max_ahead or (self.ahead and self.stream.has_news()):
                self._take_answer(self._go_on)
            if self.refusal is not None:
                break
            self.is_out_of_step = True
            self.ahead.append((number, batch))
            frame = pack_batch(number, self.moves.transfer_id, batch.blocks)
            self.ship(memoryview(frame), batch, self._go_on)
            self.is_out_of_step = False
            num_copies += len(batch.runs)
            num_checksums += len(batch.blocks.sampled)
        self._take_answers(self._go_on)
        return PushReceipt(
            num_blocks=self.num_done,
            num_bytes=self.num_done * block_bytes,
            num_copies=num_copies,
            num_checksums=num_checksums,
            elapsed_s=self.clock.now() - self.started_at_s,
        )

    def _stop_between_batches(self) -> None:
        """Raises: TransferCancelled, TransferTimeout, once all that was sent is answered."""
        is_late = self.clock.now() - self.started_at_s > self.timeout_s
        if not (self.should_stop() or is_late):
            return
        until_s = self.clock.now() + _LAST_ANSWERS_S

        def wait_a_moment() -> None:
            if self.clock.now() >= until_s:
                raise self._gave_up(is_late)

        self._take_answers(wait_a_moment)
        raise self._gave_up(is_late)

    def _go_on(self) -> None:
        """Between slices of a call that takes long."""
        is_late = self.clock.now() - self.started_at_s > self.timeout_s
        if is_late or self.should_stop():
            self.is_out_of_step = True
            raise self._gave_up(is_late)

    def _gave_up(self, is_late: bool) -> TransferError:
        self.is_out_of_step |= bool(self.ahead)
        kind = TransferTimeout if is_late else TransferCancelled
        return kind(self.moves.transfer_id, self.num_done, self.moves.num_blocks)

    def _take_answers(self, patience: Callable[[], None]) -> None:
        """All that are missing. Raises: StaleGeneration where one was a refusal."""
        while self.ahead:
            self._take_answer(patience)
        if self.refusal is not None:
            assert self.refused is not None
            blocks, answer = self.refused.blocks, self.refusal
            tags = blocks.tags[blocks.dst == answer.block_id]
            tag = int(tags[0]) if len(tags) else 0
            raise StaleGeneration(answer.block_id, tag, answer.expected or None)

    def _take_answer(self, patience: Callable[[], None]) -> None:
        answer = read_answer(self.stream.receive(ANSWER_BYTES, patience))
        number, batch = self.ahead.popleft()
        if answer.sequence_number != number:
            raise FrameError("answers come out of order")
        if answer.verdict is Verdict.PUBLISHED:
            self.num_done += batch.num_blocks
        elif self.refusal is None:
            self.refusal, self.refused = answer, batch
