"""Do the ledger's books add up? For tests, `tandem admin` and a suspicious operator."""

from collections import Counter

from cluster.errors import LedgerCorrupted
from cluster.ledger import SHARES, Ledger, LedgerSnapshot


async def read_whole(ledger: Ledger, *, max_holdings: int = 100_000) -> LedgerSnapshot:
    """All holdings in one atomic snapshot. Raises: LedgerCorrupted beyond `max_holdings`."""
    snapshot = await ledger.snapshot(max_holdings=max_holdings)
    if snapshot.next_page is not None:
        raise LedgerCorrupted(f"more than {max_holdings} holdings")
    return snapshot


def check_invariants(snapshot: LedgerSnapshot) -> None:
    """Prove the invariants of a whole snapshot. Raises: LedgerCorrupted with the first violation.

    Nothing exceeds its capacity; every count equals the sum of the holdings; every holding has
    one owner that is known, on one worker life that is the current one.
    """
    if snapshot.next_page is not None:
        raise LedgerCorrupted("a part of the holdings cannot be audited")
    held_blocks: Counter[str] = Counter()
    held_offline: Counter[str] = Counter()
    life_by_worker = {book.worker.worker_id: book for book in snapshot.workers}
    life_by_router = {lease.router.router_id: lease.router for lease in snapshot.routers}
    seen = set()
    for holding in snapshot.holdings:
        name = (holding.claim.task_id, holding.claim.leg)
        if name in seen:
            raise LedgerCorrupted(f"{name} is held twice")
        seen.add(name)
        book = life_by_worker.get(holding.worker.worker_id)
        if book is None or book.worker != holding.worker or book.is_lost:
            raise LedgerCorrupted(f"{name} is held on {holding.worker}, which is gone")
        if life_by_router.get(holding.router.router_id) != holding.router:
            raise LedgerCorrupted(f"{name} is held by {holding.router}, which is gone")
        held_blocks[holding.worker.worker_id] += holding.num_blocks
        held_offline[holding.worker.worker_id] += holding.num_blocks if holding.offline else 0
    for book in snapshot.workers:
        worker_id = book.worker.worker_id
        if not 0 <= book.num_reserved <= book.num_blocks:
            raise LedgerCorrupted(
                f"worker {worker_id}: {book.num_reserved} of {book.num_blocks} blocks are reserved"
            )
        if min(book.num_by_share[share] for share in SHARES) < 0:
            raise LedgerCorrupted(f"worker {worker_id}: negative share in {book.num_by_share}")
        if book.num_reserved != sum(book.num_by_share.values()):
            raise LedgerCorrupted(f"worker {worker_id}: shares do not sum to {book.num_reserved}")
        if book.num_reserved != held_blocks[worker_id]:
            raise LedgerCorrupted(
                f"worker {worker_id}: {book.num_reserved} reserved, {held_blocks[worker_id]} held"
            )
        if book.num_offline != held_offline[worker_id]:
            raise LedgerCorrupted(
                f"worker {worker_id}: {book.num_offline} offline, {held_offline[worker_id]} held"
            )
