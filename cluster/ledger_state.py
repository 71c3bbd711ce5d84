"""The lines of a `LedgerBook`: mutable, one process, no rules but sums and limits."""

from dataclasses import dataclass, field, replace

from cluster.ledger import (
    SHARES,
    Claim,
    Holding,
    Leg,
    RouterLife,
    Share,
    Shares,
    WorkerBook,
    WorkerLife,
)
from scheduling.ids import Incarnation, TaskId, WorkerId


@dataclass(slots=True)
class WorkerState:
    incarnation: Incarnation
    num_blocks: int
    shares: Shares
    # None: no lease; lives until `worker_lost`.
    expires_at_ms: int | None
    is_lost: bool = False
    num_offline: int = 0
    num_by_share: dict[Share, int] = field(default_factory=lambda: dict.fromkeys(SHARES, 0))

    @property
    def num_reserved(self) -> int:
        return sum(self.num_by_share.values())

    def is_alive(self, now_ms: int) -> bool:
        return not self.is_lost and (self.expires_at_ms is None or self.expires_at_ms > now_ms)

    def free_for(self, share: Share, offline: bool) -> int:
        """Blocks that a reservation of this kind may still take."""
        limit = self.num_blocks
        if share != "growth":
            limit -= self.shares.growth_reserve
        if share == "general":
            limit -= self.shares.prompt_reserve
        free = limit - self.num_reserved
        if offline:
            free = min(free, self.num_blocks - self.shares.online_threshold - self.num_offline)
        return max(0, free)

    def copy(self) -> "WorkerState":
        return replace(self, num_by_share=dict(self.num_by_share))

    def book(self, worker_id: WorkerId) -> WorkerBook:
        """This line as the snapshot shows it."""
        return WorkerBook(
            worker=WorkerLife(worker_id, self.incarnation),
            num_blocks=self.num_blocks,
            shares=self.shares,
            num_reserved=self.num_reserved,
            num_by_share=dict(self.num_by_share),
            num_offline=self.num_offline,
            is_lost=self.is_lost,
        )


@dataclass(slots=True)
class RouterState:
    incarnation: Incarnation
    expires_at_ms: int
    is_swept: bool = False


@dataclass(slots=True)
class HoldingState:
    attempt: int
    router: RouterLife
    worker: WorkerLife
    offline: bool
    is_committed: bool = False
    last_sequence_number: int = 0
    # Outcome of the last extend; a commit counts as granted.
    was_granted: bool = True
    num_by_share: dict[Share, int] = field(default_factory=lambda: dict.fromkeys(SHARES, 0))

    @property
    def num_blocks(self) -> int:
        return sum(self.num_by_share.values())

    def copy(self) -> "HoldingState":
        return replace(self, num_by_share=dict(self.num_by_share))

    def view(self, task_id: TaskId, leg: Leg) -> Holding:
        """This line as the snapshot shows it."""
        return Holding(
            claim=Claim(task_id, leg, self.attempt),
            router=self.router,
            worker=self.worker,
            num_blocks=self.num_blocks,
            state="committed" if self.is_committed else "reserved",
            offline=self.offline,
        )
