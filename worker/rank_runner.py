"""The engine and the KV side of a worker with several ranks, as its engine thread knows them."""

import queue
from collections import deque
from collections.abc import Sequence

from engine.model_runner import ModelRunner
from engine.runner import LogitsNotFinite
from scheduling.ids import BlockId
from scheduling.kv_export import KvExport
from scheduling.step import SequenceStart, StepPlan, StepResult
from scheduling.worker_events import (
    DropSequence,
    ExtendSequence,
    KvAction,
    ReplaceBlocks,
    WorkerEvent,
)
from worker.engine_loop import KvSide
from worker.rank_group import RankGroup
from worker.rank_kv import RankKv, RankOutcome
from worker.rank_messages import PeerIntroduced, TokensSampled


class GroupRunner:
    """A `Runner` that has every rank do what rank 0 does. Sampling is rank 0's alone."""

    def __init__(self, own: ModelRunner, group: RankGroup) -> None:
        self._own = own
        self._group = group

    def add(self, start: SequenceStart) -> None:
        """See `Runner`; what rank 0 refuses, nobody else hears of."""
        self._own.add(start)
        self._group.tell(start)

    def extend_blocks(self, slot: int, block_ids: Sequence[int]) -> None:
        """See `Runner`."""
        self._own.extend_blocks(slot, block_ids)
        self._group.tell(ExtendSequence(slot, _ids(block_ids)))

    def replace_blocks(self, slot: int, first_index: int, block_ids: Sequence[int]) -> None:
        """See `Runner`."""
        self._own.replace_blocks(slot, first_index, block_ids)
        self._group.tell(ReplaceBlocks(slot, first_index, _ids(block_ids)))

    def remove(self, slot: int) -> None:
        """See `Runner`."""
        self._own.remove(slot)
        self._group.tell(DropSequence(slot))

    def step(self, plan: StepPlan) -> StepResult:
        """See `Runner`. Raises also: RankLost, after which there is no other step."""
        if not plan.chunks:
            return StepResult((), ())
        self._own.check(plan)
        self._group.tell(plan)
        self._group.tell_waiting()
        try:
            result = self._own.step(plan)
        except LogitsNotFinite:
            # Found out after the last exchange: the ranks are where they should be.
            raise
        except Exception as error:
            raise self._group.loss_after(error) from error
        if result.slots:
            self._group.tell(TokensSampled(result.slots, result.token_ids))
        return result


class GroupKv:
    """A `KvSide` over those of all ranks: the core hears of an order when it is true of all."""

    def __init__(self, own: KvSide, group: RankGroup) -> None:
        self._own = own
        self._group = group
        self._joined = RankKv(group.size)
        self._events: deque[WorkerEvent] = deque()
        # By the event loop, for the engine thread.
        self._introduced: queue.SimpleQueue[KvExport] = queue.SimpleQueue()

    def introduce(self, export: KvExport) -> None:
        """Have the other ranks connect to a pool, from any thread: they hear of it by `poll`."""
        self._introduced.put(export)

    @property
    def is_polling(self) -> bool:
        """Some rank awaits something, or owes an answer."""
        return self._own.is_polling or self._joined.is_waiting

    def perform(self, action: KvAction) -> None:
        """On every rank. Raises: RankLost."""
        self._follow(self._joined.ordered(action))
        self._group.perform_on_all(action)
        self._own.perform(action)

    def poll(self) -> list[WorkerEvent]:
        """What became true of all ranks. Raises: RankLost once one is gone."""
        self._group.require_all()
        self._pass_on_introductions()
        for rank, told in enumerate([self._own.poll(), *self._polled()]):
            for event in told:
                self._follow(self._joined.told(rank, event))
        events = list(self._events)
        self._events.clear()
        return events

    def _pass_on_introductions(self) -> None:
        if self._introduced.empty():
            return
        while not self._introduced.empty():
            self._group.tell(PeerIntroduced(self._introduced.get_nowait()))
        self._group.tell_waiting()

    def _polled(self) -> list[list[WorkerEvent]]:
        return self._group.poll_all() if self._joined.is_waiting else []

    def _follow(self, outcome: RankOutcome) -> None:
        self._events.extend(outcome.events)
        for rank, order in outcome.orders:
            if rank:
                self._group.perform_on(rank, order)
            else:
                self._own.perform(order)


def _ids(block_ids: Sequence[int]) -> tuple[BlockId, ...]:
    return tuple(map(BlockId, block_ids))
