"""Sends reservations to the ledger together: those of one breath, and all that gather meanwhile.

A round trip costs the router more than what it carries, so one is under way at a time and the next
takes everything that has come in between. Alone, a reservation is sent at once.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from cluster.errors import LedgerUnavailable
from cluster.ledger import Grant, Ledger, Refusal, ReserveRequest, RouterLife

Spawn = Callable[[Coroutine[Any, Any, None]], object]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    life: RouterLife
    request: ReserveRequest
    outcome: asyncio.Future[Grant | Refusal]

    def answer(self, outcome: Grant | Refusal) -> None:
        if not self.outcome.done():  # else nobody waits any more
            self.outcome.set_result(outcome)

    def fail(self, error: Exception) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)


class ReservationBatch:
    """Used from the event loop only."""

    def __init__(
        self, ledger: Ledger, spawn: Spawn, may_send: Callable[[], Awaitable[None]]
    ) -> None:
        self._ledger = ledger
        # Awaited before each round trip, not for each reservation.
        self._may_send = may_send
        self._spawn = spawn
        self._waiting: list[_Waiting] = []
        self._is_sending = False

    def add(self, life: RouterLife, request: ReserveRequest) -> asyncio.Future[Grant | Refusal]:
        """As `Ledger.reserve`, in company. It needs no task of its own."""
        loop = asyncio.get_running_loop()
        outcome: asyncio.Future[Grant | Refusal] = loop.create_future()
        self._waiting.append(_Waiting(life, request, outcome))
        if not self._is_sending:
            self._is_sending = True
            self._spawn(self._send_all())
        return outcome

    async def _send_all(self) -> None:
        batch: list[_Waiting] = []
        try:
            await asyncio.sleep(0)  # what one frame started goes together
            while self._waiting:
                await self._may_send()
                life = self._waiting[0].life
                batch = [waiting for waiting in self._waiting if waiting.life == life]
                self._waiting = [waiting for waiting in self._waiting if waiting.life != life]
                await self._send(life, batch)
        finally:
            self._is_sending = False
            unanswered, self._waiting = (*batch, *self._waiting), []
            for waiting in unanswered:
                if not waiting.outcome.done():  # nearly always it has its answer
                    # Not cancelled: its caller would take that for an end of its own.
                    waiting.fail(_ended_early())

    async def _send(self, life: RouterLife, batch: list[_Waiting]) -> None:
        outcomes = None
        if len(batch) > 1:
            try:
                outcomes = await self._ledger.reserve_many(life, [w.request for w in batch])
            except LedgerUnavailable as error:
                for waiting in batch:
                    waiting.fail(error)
                return
            except Exception:
                # Some claim met an error, or a defect: asked one by one, each gets its own answer.
                outcomes = None
        for index, waiting in enumerate(batch):
            try:
                waiting.answer(
                    await self._ledger.reserve(life, waiting.request)
                    if outcomes is None
                    else outcomes[index]
                )
            except Exception as error:  # a defect as well: nobody may wait for ever
                waiting.fail(error)


def _ended_early() -> LedgerUnavailable:
    problem = "the round trip that was to carry it ended before there was an answer"
    return LedgerUnavailable("reserve", "this router's side", problem)
