"""The sender's side of gloo and NCCL: gather a batch, announce it, send it, hear of it later."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from kvtransfer.batches import (
    Batch,
    ChecksumsOf,
    PushSettings,
    TargetPool,
    cut_tagged_batches,
    host_checksums,
    num_source_blocks,
    source_blocks,
)
from kvtransfer.device import KvSource
from kvtransfer.device_writing import StuckCopies, keep
from kvtransfer.errors import CopyStuck, ExportUnavailable, PeerGone
from kvtransfer.group_meeting import JOIN_TIMEOUT_S, send_group
from kvtransfer.group_rooms import GroupRooms
from kvtransfer.process_group import GroupFailed, GroupKind
from kvtransfer.protocol import BlockMoves, PushReceipt, never
from kvtransfer.staging import NUM_ROOMS, Staging
from kvtransfer.tcp_connect import dial, patience_of
from kvtransfer.tcp_connection import Connection
from kvtransfer.tcp_frames import MAX_BATCH_BLOCKS, MEETING_BYTES, FrameError, read_meeting
from kvtransfer.tcp_sender import AnsweredPush
from kvtransfer.tcp_stream import ConnectionLost, Patience, Stream
from runtime.clock import Clock, MonotonicClock
from scheduling.kv_export import KvExport

# The receiver may have to start up its GPU first.
_DIAL_TIMEOUT_S: Final = JOIN_TIMEOUT_S


@dataclass(slots=True)
class GroupLine:
    """One connection, and the pair's process group beside it."""

    stream: Stream
    rooms: GroupRooms
    max_batch_bytes: int

    @property
    def staging(self) -> Staging:
        """Where batches are gathered."""
        return self.rooms.staging

    def close(self) -> None:
        self.rooms.close()


def _dial(kind: GroupKind, export: KvExport, sender_id: str, max_batch_bytes: int) -> GroupLine:
    patience = patience_of(MonotonicClock(), _DIAL_TIMEOUT_S, export)
    stream = dial(export, sender_id, _DIAL_TIMEOUT_S)
    try:
        meeting = read_meeting(stream.receive(MEETING_BYTES, patience))
        # A block is never cut, and the receiver has room for one at least.
        most = min(max(max_batch_bytes, export.block_bytes), meeting.max_batch_bytes)
        staging = kind.new_staging(most)
        with staging.stream():
            group = send_group(kind, meeting, stream)
    except GroupFailed as error:
        is_gone = stream.has_news()
        stream.reset()
        if is_gone:
            raise PeerGone(export.worker_id, export.incarnation) from error
        raise ExportUnavailable(
            f"{kind.name} makes no group with worker {export.worker_id} ({error.problem})",
            "let all ports of both hosts be open to one another, or give both another transport",
        ) from error
    except (ConnectionLost, FrameError) as error:
        stream.reset()
        raise PeerGone(export.worker_id, export.incarnation) from error
    except BaseException:
        stream.reset()
        raise
    return GroupLine(stream, GroupRooms(group, staging), most)


class GroupSender:
    """See `KvSender`. A group that broke is made anew, but never in the middle of a push."""

    def __init__(
        self,
        kind: GroupKind,
        export: KvExport,
        sender_id: str,
        settings: PushSettings,
        clock: Clock,
    ) -> None:
        self._kind = kind
        self._export = export
        self._settings = settings
        self._clock = clock
        # Blocks that are gathered from the source for ever.
        self._stuck = StuckCopies()
        most = settings.max_batch_bytes
        self._connection = Connection(export, lambda: _dial(kind, export, sender_id, most))

    def push(
        self,
        source: KvSource,
        moves: BlockMoves,
        *,
        timeout_s: float,
        should_stop: Callable[[], bool] = never,
    ) -> PushReceipt:
        self._stuck.require_over(moves.transfer_id)
        self._connection.check()
        block_bytes = self._export.block_bytes
        line = self._connection.line()
        checksums_of = self._checksums_of(source, moves, line.staging)
        target = TargetPool(self._export.num_blocks, block_bytes, MAX_BATCH_BLOCKS)
        settings = replace(self._settings, max_batch_bytes=line.max_batch_bytes)
        batches = cut_tagged_batches(checksums_of, moves, target, settings)

        def ship(frame: memoryview, batch: Batch, patience: Patience) -> None:
            with line.staging.stream():
                room = line.staging.gather(source, batch.runs, block_bytes)
                line.stream.send([frame], patience)
                line.rooms.begin_send(room)

        push = AnsweredPush(
            line.stream, moves, ship, self._clock, timeout_s, should_stop, NUM_ROOMS
        )
        try:
            return push.run(batches, block_bytes)
        except (ConnectionLost, FrameError) as error:
            self._let_source_go(line, source, moves.transfer_id)
            raise self._connection.loss(error.problem) from error
        except BaseException:
            # What was gathered in time may be read by the group for longer, the source may not.
            self._let_source_go(line, source, moves.transfer_id)
            if push.is_out_of_step or push.ahead:
                self._connection.drop()
            raise

    def check(self) -> None:
        self._stuck.is_over()
        self._connection.check()

    def close(self) -> None:
        self._connection.close()

    def _let_source_go(self, line: GroupLine, source: KvSource, transfer_id: str) -> None:
        """Wait until nothing reads the source. Raises: CopyStuck; this line is given up then."""
        try:
            line.staging.wait_until_idle(transfer_id)
        except CopyStuck as error:
            keep(line, source)
            self._stuck.begin(error, [line.staging], line.staging.close)
            self._connection.drop()
            raise

    def _checksums_of(self, source: KvSource, moves: BlockMoves, staging: Staging) -> ChecksumsOf:
        block_bytes = self._export.block_bytes
        if isinstance(source, memoryview) or not self._kind.takes_device_pools:
            pool = source_blocks(source, moves, block_bytes)
            return host_checksums(pool, self._settings.checksum)
        num_source_blocks(source.num_bytes, moves, block_bytes)
        return lambda block_ids: staging.checksums(source, block_bytes, block_ids)
