"""Keep one process registered: a heartbeat that survives an absent store and notices its end."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from cluster.errors import LedgerUnavailable, MembershipUnavailable, WorkerNameTaken
from cluster.membership import MemberRecord, Membership
from scheduling.errors import StaleIncarnation

# A lease survives two lost renewals.
_RENEWALS_PER_LEASE = 3


class Registration:
    """Registers at `start`, renews until `stop`; `wait_lost` returns if the name was lost."""

    def __init__(
        self,
        membership: Membership,
        record: MemberRecord,
        *,
        ttl_s: float,
        after_renewal: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._membership = membership
        self._record = record
        self._ttl_s = ttl_s
        # Such as `ledger.set_capacity` or `ledger.renew`: restores the ledger's side as well.
        self._after_renewal = after_renewal
        self._stopping = asyncio.Event()
        self._heartbeat: asyncio.Task[StaleIncarnation | WorkerNameTaken | None] | None = None

    async def start(self) -> None:
        """Raises: WorkerNameTaken, StaleIncarnation, MembershipUnavailable: not registered."""
        await self._renew()
        self._heartbeat = asyncio.create_task(self._beat(), name=f"lease of {self._record.name}")

    async def wait_lost(self) -> StaleIncarnation | WorkerNameTaken | None:
        """Wait until another life has the name (the reason why), or until `stop` (None)."""
        if self._heartbeat is None:
            return None
        return await asyncio.shield(self._heartbeat)

    async def stop(self) -> None:
        """Leave the cluster. An absent store is no error: the lease ends by itself."""
        self._stopping.set()
        if self._heartbeat is not None:
            await self._heartbeat
            with suppress(MembershipUnavailable):
                await self._membership.deregister(self._record)

    async def _renew(self) -> None:
        await self._membership.register(self._record, self._ttl_s)
        if self._after_renewal is not None:
            await self._after_renewal()

    async def _beat(self) -> StaleIncarnation | WorkerNameTaken | None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._ttl_s / _RENEWALS_PER_LEASE):
                    await self._stopping.wait()
                return None
            try:
                await self._renew()
            except (MembershipUnavailable, LedgerUnavailable):
                continue
            except (StaleIncarnation, WorkerNameTaken) as error:
                return error
