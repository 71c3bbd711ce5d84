"""For tests: senders led by hand, and gloo under the interface of NCCL, to run without a GPU."""

import threading
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed as dist

from kvtransfer.batches import PushSettings, TargetPool, cut_batches, source_blocks
from kvtransfer.group_meeting import send_group
from kvtransfer.process_group import GroupKind, Nccl, PairGroup
from kvtransfer.protocol import BlockMoves
from kvtransfer.staging import Staging
from kvtransfer.tcp_connect import dial
from kvtransfer.tcp_frames import MEETING_BYTES, pack_batch, read_meeting
from kvtransfer.tcp_stream import Stream
from kvtransfer.testing import PATIENCE_S
from scheduling.kv_export import KvExport


def join_by_hand(export: KvExport, kind: GroupKind) -> tuple[Stream, PairGroup]:
    """A sender, `prefill-9#1`, that does only what the test says."""
    stream = dial(export, "prefill-9#1", PATIENCE_S)
    meeting = read_meeting(stream.receive(MEETING_BYTES, _wait_on))
    return stream, send_group(kind, meeting, stream)


def announce(
    stream: Stream, source: bytearray, moves: BlockMoves, block_bytes: int, settings: PushSettings
) -> None:
    """The first batch of a push into a pool as large as the source; its bytes do not follow."""
    pool = source_blocks(memoryview(source), moves, block_bytes)
    batch = next(cut_batches(pool, moves, TargetPool(len(pool), block_bytes), settings))
    stream.send([memoryview(pack_batch(0, moves.transfer_id, batch.blocks))], _wait_on)


def _wait_on() -> None:
    """The test's own timeout ends it."""


class GlooAsNccl:
    """Stands for `ProcessGroupNCCL`; what is made of it is counted here."""

    class Options:
        """As the library's."""

        def __init__(self) -> None:
            self._timeout = timedelta()

        @property
        def timeout(self) -> timedelta:
            return self._timeout

    def __init__(self) -> None:
        self.groups: list[_Group] = []

    def __call__(self, store: object, rank: int, size: int, options: "Options") -> "_Group":
        group = _Group(store, rank, size, options.timeout)
        self.groups.append(group)
        return group


class FakeSideStream:
    """See `SideStream`: of a device that does all at once, or has failed."""

    def __init__(self) -> None:
        # Why it can tell nothing.
        self.problem: str | None = None

    def current(self) -> AbstractContextManager[object]:
        return nullcontext()

    def wait_for_engine(self) -> None:
        """There is none."""

    def is_idle(self) -> bool:
        if self.problem is not None:
            raise RuntimeError(self.problem)
        return True


class NcclOnADevice(Nccl):
    """Over gloo, between pools of a fake device, with a stream that tests speak for."""

    def __init__(self) -> None:
        super().__init__("cpu", GlooAsNccl())
        # Of every staging, oldest first.
        self.streams: list[FakeSideStream] = []

    def new_staging(self, max_batch_bytes: int) -> Staging:
        """See `GroupKind.new_staging`."""
        self.streams.append(FakeSideStream())
        return Staging(max_batch_bytes, "cpu", self.streams[-1])


class GroupThatIsNotEnded:
    """Stands for a group of NCCL that waits for itself when it is aborted."""

    def __init__(self) -> None:
        self.is_asked = threading.Event()
        self.may_end = threading.Event()

    def abort(self) -> None:
        self.is_asked.set()
        self.may_end.wait(PATIENCE_S)


class NcclThatNeverConnects:
    """Stands for `ProcessGroupNCCL` whose peer does not come."""

    Options = GlooAsNccl.Options

    def __init__(self) -> None:
        self.was_aborted = threading.Event()

    def __call__(self, store: object, rank: int, size: int, options: object) -> Self:
        return self

    def eager_connect_single_device(self, device: torch.device) -> None:
        self.was_aborted.wait(PATIENCE_S)

    def abort(self) -> None:
        self.was_aborted.set()


class _Group:
    def __init__(self, store: object, rank: int, size: int, timeout: timedelta) -> None:
        self._arguments = (store, rank, size, timeout)
        self._inner: Any = None
        self.num_aborts = 0

    def eager_connect_single_device(self, device: torch.device) -> None:
        api: Any = dist.ProcessGroupGloo
        store, rank, size, timeout = self._arguments
        options = api._Options()
        options._timeout = timeout
        options._devices = [api.create_device(hostname="127.0.0.1", lazy_init=False)]
        self._inner = api(store, rank, size, options)

    def send(self, tensors: list[torch.Tensor], rank: int, tag: int) -> "_Work":
        return _Work(self._inner.send(tensors, rank, tag))

    def recv(self, tensors: list[torch.Tensor], rank: int, tag: int) -> "_Work":
        return _Work(self._inner.recv(tensors, rank, tag))

    def abort(self) -> None:
        self.num_aborts += 1
        self._inner = None


class _Work:
    """Can be asked whether it is done, as that of NCCL, and never notices that its peer died."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._is_done = threading.Event()
        threading.Thread(target=self._finish, daemon=True).start()

    def is_completed(self) -> bool:
        return self._is_done.is_set()

    def wait(self, timeout: timedelta) -> bool:
        return self._is_done.wait(timeout.total_seconds())

    def synchronize(self) -> None:
        """Nothing here has a stream."""

    def _finish(self) -> None:
        try:
            self._inner.wait(timedelta(seconds=PATIENCE_S))
        except RuntimeError:
            return
        self._inner = None
        self._is_done.set()
