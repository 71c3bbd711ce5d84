"""Strikes at the processes of a running cluster, and the undoing of each."""

import asyncio
import os
import signal
from collections import defaultdict
from collections.abc import Mapping

from deploy.chaos.plan import REDIS, Strike
from deploy.chaos.record import Record
from deploy.local.child import ChildProcess
from deploy.local.cluster import LocalCluster
from deploy.local.errors import LaunchFailed
from deploy.local.testing import Saboteur
from tandemserve import AsyncClient, LastWorker, TandemError

# On top of a drain; loading and closing may be slow on a busy machine.
_END_TIMEOUT_S = 40.0
_POLL_S = 0.2
_NO_REDIS = ("unreachable Redis", "ledger operation", "membership operation")


class Striker:
    """Harms one victim at a time in one way, and makes it whole again."""

    def __init__(
        self,
        cluster: LocalCluster,
        children: Mapping[str, ChildProcess],
        admin: AsyncClient,
        record: Record,
    ) -> None:
        self._children = children
        # Of all routers, for cordons.
        self._admin = admin
        self._record = record
        self._redis = Saboteur(cluster)
        self._lock_by_victim = defaultdict[str, asyncio.Lock](asyncio.Lock)

    async def strike(self, strike: Strike, num_certain_tokens: int) -> None:
        """Wait for the moment, strike, undo it. Raises nothing that a cluster causes."""
        at_tokens = int(strike.at_fraction * num_certain_tokens)
        if not await self._record.until_delivered(at_tokens):
            self._record.missed(strike, at_tokens, num_certain_tokens)
            return
        name = f"{strike.kind} {strike.victim.partition('-')[0]}"
        # Not before the last strike at the same victim is undone.
        async with self._lock_by_victim[strike.victim]:
            self._record.say(strike.line())
            if strike.victim == REDIS:
                await self._strike_redis(strike)
            elif strike.kind in ("cordon", "evacuate"):
                # It depends on who is there at the moment, so a refusal is only counted.
                name = name if await self._close(strike) else f"{name} refused"
            else:
                await self._strike_process(strike)
        self._record.strikes[name] += 1

    async def keep_alive(self) -> None:
        """Start again what ends by itself, until cancelled; only one ending is no problem."""
        while True:
            for child in self._children.values():
                if not child.is_running and not self._lock_by_victim[child.name].locked():
                    message = child.ending().message
                    if _had_no_redis(child):
                        # An orchestrator does this.
                        self._record.say(message)
                    else:
                        self._record.add_problem(None, f"not by a strike: {message}")
                    child.start()
            await asyncio.sleep(_POLL_S)

    async def _strike_process(self, strike: Strike) -> None:
        child = self._children[strike.victim]
        if strike.kind == "freeze" and child.is_running:
            os.kill(child.pid, signal.SIGSTOP)
            await asyncio.sleep(strike.lasts_s)
            os.kill(child.pid, signal.SIGCONT)
            return
        if strike.kind == "drain" and child.is_running:
            await self._drain(child)
        else:
            child.kill()
        await asyncio.sleep(strike.lasts_s)
        child.start()

    async def _drain(self, child: ChildProcess) -> None:
        child.terminate()
        if not await child.wait_ended(_END_TIMEOUT_S):
            self._record.add_problem(None, f"{child.name} was asked to go and is still there")
            child.kill()
        elif not child.ended_well and not _had_no_redis(child):
            self._record.add_problem(None, f"asked to go, {child.ending().message}")

    async def _strike_redis(self, strike: Strike) -> None:
        if strike.kind == "freeze":
            self._redis.freeze(REDIS)
            await asyncio.sleep(strike.lasts_s)
            self._redis.thaw(REDIS)
            return
        self._redis.kill(REDIS)
        await asyncio.sleep(strike.lasts_s)
        try:
            await self._redis.revive_redis()
        except LaunchFailed as error:
            self._record.add_problem(None, f"redis cannot be started again: {error.message}")

    async def _close(self, strike: Strike) -> bool:
        """Let a worker take no new tasks for a while; False where no router did it."""
        admin = self._admin.admin
        close = admin.cordon if strike.kind == "cordon" else admin.evacuate
        try:
            await close(strike.victim)
        except LastWorker:
            self._record.say(f"{strike.victim} is the last one, it stays open")
            return False
        except TandemError as error:
            # The worker, or all routers, are gone at this moment. It may be closed all the same.
            self._record.say(f"{strike.victim} stays open: {error.message}")
            is_closed = False
        else:
            is_closed = True
        await asyncio.sleep(strike.lasts_s)
        try:
            await admin.uncordon(strike.victim)
        except TandemError as error:
            # Done again when everybody is back.
            self._record.say(f"{strike.victim} stays closed: {error.message}")
        return is_closed


def _had_no_redis(child: ChildProcess) -> bool:
    """It was started while Redis was under a strike, and gave up."""
    message = child.ending().message
    return any(part in message for part in _NO_REDIS)
