"""Did every KV block come back? Asked of the workers and of the ledger, through the router."""

import asyncio
from dataclasses import dataclass

from runtime.clock import MonotonicClock
from tandemserve import AsyncClient, Reservations, WorkerView

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class LeakCheck:
    """What workers and ledger say when no request runs."""

    workers: tuple[WorkerView, ...]
    reservations: Reservations

    @property
    def is_clean(self) -> bool:
        """Every worker is there and empty, and nothing is promised to anybody."""
        return (
            bool(self.workers)
            and all(worker.state == "ready" for worker in self.workers)
            and all(worker.num_free_blocks == worker.num_blocks > 0 for worker in self.workers)
            and not self._swapping
            and self.num_reserved_blocks == 0
            and not self.reservations.holdings
        )

    @property
    def num_reserved_blocks(self) -> int:
        return sum(worker.num_reserved_blocks for worker in self.reservations.workers)

    @property
    def _swapping(self) -> list[WorkerView]:
        """Workers with KV in host memory."""
        return [each for each in self.workers if each.num_free_swap_blocks != each.num_swap_blocks]

    def line(self) -> str:
        """The finding for people."""
        pools = ", ".join(
            f"{worker.worker_id} {worker.num_free_blocks}/{worker.num_blocks}"
            for worker in self.workers
        )
        pools += "".join(
            f", {each.worker_id} {each.num_free_swap_blocks}/{each.num_swap_blocks} in host memory"
            for each in self._swapping
        )
        verdict = "every KV block came back" if self.is_clean else "KV blocks are missing"
        return (
            f"{verdict}: {pools} free; the ledger holds {len(self.reservations.holdings)} "
            f"reservations of {self.num_reserved_blocks} blocks"
        )


async def check_for_leaks(client: AsyncClient, timeout_s: float) -> LeakCheck:
    """Look until everything is back, at most so long; a cancelled request may still be on its way.

    Raises: TandemError.
    """
    clock = MonotonicClock()
    deadline_at_s = clock.now() + timeout_s
    while True:
        check = LeakCheck(await client.admin.workers(), await client.admin.reservations())
        if check.is_clean or clock.now() >= deadline_at_s:
            return check
        await asyncio.sleep(_POLL_S)
