"""One rank's side of the KV transfer: its pool, and how that is written into or pushed from.

The same for the only rank of a worker, for rank 0 of several, and for the others.
"""

import queue
from collections.abc import Callable
from dataclasses import dataclass

from engine.copy_stream import CudaCopyStream
from engine.kv_pool import KvLayout, KvPool
from engine.kv_swap import KvSwap
from engine.model_runner import BeforePass
from kvtransfer.doors import PoolOwner
from kvtransfer.lane import LaneSettings
from kvtransfer.protocol import Transport
from kvtransfer.pusher import Pusher
from kvtransfer.receiver import receive_by
from kvtransfer.slices import WHOLE, PoolSlices, export_of_rank, pool_name
from runtime.clock import MonotonicClock
from runtime.worker_config import PrefillConfig, WorkerConfig
from scheduling.ids import Incarnation
from scheduling.kv_export import KvExport
from scheduling.worker_events import KvAction, Push, WorkerEvent
from worker.engine_loop import KvSide
from worker.kv_push import KvPush
from worker.kv_receive import KvReceive
from worker.pool_memory import pool_over, private_pool
from worker.transports import gpu_memory


@dataclass(frozen=True, slots=True)
class RankPlace:
    """Where a rank's KV lies, and in which worker."""

    config: WorkerConfig
    incarnation: Incarnation
    # Of this rank's pool.
    layout: KvLayout
    num_blocks: int
    transports: dict[str, Transport]
    # What the pool holds of every block of the worker.
    slices: PoolSlices = WHOLE
    rank: int = 0

    @property
    def unit_bytes(self) -> int:
        """Of the pool, as transports see it."""
        return self.layout.block_bytes // self.slices.num

    @property
    def pool_name(self) -> str:
        """See `kvtransfer.slices.pool_name`."""
        return pool_name(self.config.worker_id, self.rank)


@dataclass(frozen=True, slots=True)
class RankTransfer:
    """The pool and what moves KV in and out of it."""

    pool: KvPool
    kv: KvSide
    # Ends the transfer; waits at most the given seconds.
    close: Callable[[float], None]
    # Of this rank alone; None where nobody pushes into it.
    export: KvExport | None = None
    # Connect to a pool ahead of the first push; returns at once.
    prepare_peer: Callable[[KvExport], None] | None = None
    # What a pass has to do first.
    before_pass: BeforePass | None = None


def receive(place: RankPlace, num_swap_blocks: int) -> RankTransfer:
    """A pool that prefill workers write into. Raises: ExportUnavailable, DeviceFailed."""
    config = place.config
    receiver = receive_by(
        list(place.transports.values()),
        PoolOwner(place.pool_name, place.incarnation),
        place.num_blocks * place.slices.num,
        place.unit_bytes,
        gpu_memory(place.rank) if config.device == "cuda" else None,
    )
    pool = pool_over(receiver.memory(), place.layout, place.num_blocks)
    # On a GPU, copies run beside the passes.
    stream = CudaCopyStream(pool.device) if pool.device.type == "cuda" else None
    swap = KvSwap(pool, num_swap_blocks, stream) if num_swap_blocks else None
    kv = KvReceive(receiver, config.kv_arrival_timeout_s, MonotonicClock(), swap, place.slices)

    def close(timeout_s: float) -> None:
        receiver.close()

    export = export_of_rank(receiver.export(), place.slices)
    before_pass = None if swap is None else swap.before_pass
    return RankTransfer(pool, kv, close, export, before_pass=before_pass)


def push(place: RankPlace, post: Callable[[WorkerEvent], None] | None = None) -> RankTransfer:
    """A private pool whose blocks are pushed to whichever decode worker the router names.

    `post` takes what becomes of pushes, from any thread; None: it is told by `KvSide.poll`.
    Raises: ExportUnavailable, DeviceFailed.
    """
    config = place.config
    assert isinstance(config, PrefillConfig)
    memory = gpu_memory(place.rank) if config.device == "cuda" else None
    pool, source = private_pool(place.layout, place.num_blocks, memory)
    polled = PolledPushes()
    pushes = KvPush(post or polled.post, config.push_timeout_s, place.slices)
    settings = LaneSettings(
        sender_id=f"{place.pool_name}#{place.incarnation}",
        block_bytes=place.unit_bytes,
        max_jobs_per_peer=config.max_push_backlog,
        min_bytes_per_s=config.min_kv_bytes_per_s,
    )
    pusher = Pusher(place.transports, source, pushes.on_done, settings, MonotonicClock())
    pushes.attach(pusher)
    polled.attach(pushes)

    def close(timeout_s: float) -> None:
        pusher.close(timeout_s)

    kv = polled if post is None else pushes
    return RankTransfer(pool, kv, close, prepare_peer=pushes.prepare_peer)


class PolledPushes:
    """A `KvSide` whose pushes are told by `poll`: where several ranks' are put together first."""

    def __init__(self) -> None:
        self._ended: queue.SimpleQueue[WorkerEvent] = queue.SimpleQueue()
        self._pushes: KvPush | None = None
        self._num_open = 0

    def attach(self, pushes: KvPush) -> None:
        """They are made with `post` as their callback, hence after this object."""
        self._pushes = pushes

    def post(self, event: WorkerEvent) -> None:
        """A push ended; from any thread."""
        self._ended.put(event)

    @property
    def is_polling(self) -> bool:
        """A push is under way."""
        return self._num_open > 0

    def perform(self, action: KvAction) -> None:
        """See `KvPush.perform`."""
        assert self._pushes is not None
        self._num_open += isinstance(action, Push)
        self._pushes.perform(action)

    def poll(self) -> list[WorkerEvent]:
        """The pushes that ended since the last look."""
        assert self._pushes is not None
        events = self._pushes.poll()
        while not self._ended.empty():
            events.append(self._ended.get_nowait())
        self._num_open -= len(events)
        return events
