"""For tests: the KV sides of workers with several ranks, all in one process."""

import queue
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from torch import Tensor

from engine.kv_pool import KvLayout, KvPool
from kvtransfer.doors import PoolOwner
from kvtransfer.lane import LaneSettings
from kvtransfer.protocol import KvReceiver, Transport
from kvtransfer.pusher import Pusher
from kvtransfer.receiver import receive_by
from kvtransfer.slices import PoolSlices, export_of_rank, join_exports, pool_name
from runtime.clock import Clock, MonotonicClock
from scheduling.kv_export import KvExport
from scheduling.worker_events import KvAction, WorkerEvent
from worker.kv_push import KvPush
from worker.kv_receive import KvReceive
from worker.rank_kv import KvEvent, RankKv

ARRIVAL_TIMEOUT_S: Final = 5.0
_PATIENCE_S: Final = 20.0


def heads_of(whole: Tensor, rank: int, num_ranks: int) -> Tensor:
    """A rank's share of a pool's tensor [num_blocks, head_groups, ...]."""
    width = whole.shape[1] // num_ranks
    return whole[:, rank * width : (rank + 1) * width]


@dataclass(frozen=True, slots=True)
class RankSetup:
    """A worker's ranks."""

    num_ranks: int
    # Of a worker of one rank; each of its groups of heads is a slice.
    layout: KvLayout
    transports: Sequence[Transport]

    @property
    def share(self) -> KvLayout:
        """What one rank's pool holds."""
        heads = self.layout.num_kv_heads // self.num_ranks
        groups = self.layout.head_groups // self.num_ranks
        return replace(self.layout, num_kv_heads=heads, head_groups=groups)

    def slices(self, rank: int) -> PoolSlices:
        """See `PoolSlices.of_rank`."""
        return PoolSlices.of_rank(rank, self.num_ranks, self.layout.head_groups)

    @property
    def unit_bytes(self) -> int:
        """Of every rank's pool."""
        return self.share.block_bytes // self.slices(0).num


class PrefillRanks:
    """Pools that are pushed from; `whole` is the tensor of one rank that has all heads."""

    def __init__(self, setup: RankSetup, whole: Tensor) -> None:
        self._answers: queue.SimpleQueue[tuple[int, WorkerEvent]] = queue.SimpleQueue()
        self._joined = RankKv(setup.num_ranks)
        self._sides: list[KvPush] = []
        self._pushers: list[Pusher] = []
        for rank in range(setup.num_ranks):
            pool = KvPool(setup.share, len(whole))
            pool.tensor.copy_(heads_of(whole, rank, setup.num_ranks))
            side = KvPush(partial(self._answer, rank), _PATIENCE_S, setup.slices(rank))
            pusher = Pusher(
                {transport.name: transport for transport in setup.transports},
                pool.as_bytes(),
                side.on_done,
                LaneSettings(f"{pool_name('prefill-0', rank)}#1", setup.unit_bytes),
                MonotonicClock(),
            )
            side.attach(pusher)
            self._sides.append(side)
            self._pushers.append(pusher)

    def _answer(self, rank: int, event: WorkerEvent) -> None:
        self._answers.put((rank, event))

    def perform(self, action: KvAction) -> None:
        """Every rank is told."""
        self._joined.ordered(action)
        for side in self._sides:
            side.perform(action)

    def next_events(self) -> list[KvEvent]:
        """Wait until some order has been answered by all ranks. Raises: queue.Empty."""
        while True:
            rank, event = self._answers.get(timeout=_PATIENCE_S)
            outcome = self._joined.told(rank, event)
            for other, order in outcome.orders:
                self._sides[other].perform(order)
            if outcome.events:
                return outcome.events

    def close(self) -> None:
        """End the lanes."""
        assert all(pusher.close(_PATIENCE_S) for pusher in self._pushers)


class DecodeRanks:
    """Pools that are pushed into, cleared."""

    def __init__(self, setup: RankSetup, num_blocks: int, owner: PoolOwner, clock: Clock) -> None:
        self._joined = RankKv(setup.num_ranks)
        self.receivers: list[KvReceiver] = []
        self.pools: list[KvPool] = []
        self._sides: list[KvReceive] = []
        exports: list[KvExport] = []
        for rank in range(setup.num_ranks):
            slices = setup.slices(rank)
            receiver = receive_by(
                setup.transports,
                PoolOwner(pool_name(owner.worker_id, rank), owner.incarnation),
                num_blocks * slices.num,
                setup.unit_bytes,
            )
            self.receivers.append(receiver)
            self.pools.append(KvPool(setup.share, num_blocks, buffer=receiver.buffer()))
            self._sides.append(KvReceive(receiver, ARRIVAL_TIMEOUT_S, clock, slices=slices))
            exports.append(export_of_rank(receiver.export(), slices))
        self.export = join_exports(exports)

    def perform(self, action: KvAction) -> None:
        """Every rank is told."""
        self._joined.ordered(action)
        for side in self._sides:
            side.perform(action)

    def poll(self) -> list[KvEvent]:
        """What is true of all ranks by now."""
        events: list[KvEvent] = []
        for rank, side in enumerate(self._sides):
            for event in side.poll():
                events += self._joined.told(rank, event).events
        return events

    def close(self) -> None:
        """End the exports."""
        for receiver in self.receivers:
            receiver.close()
