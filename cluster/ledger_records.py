"""How holdings, workers and routers are written as text in Redis, and read back.

The scripts in `cluster/lua/` write these records; Python only reads them. Numbers come first and
ids last, with the length in bytes where two ids meet, so that no id needs escaping: clients choose
task ids.
"""

from cluster.ledger import (
    SHARES,
    Claim,
    Holding,
    Leg,
    RouterLease,
    RouterLife,
    Shares,
    WorkerBook,
    WorkerLife,
)
from scheduling.errors import InvalidRequest, StaleIncarnation
from scheduling.ids import Incarnation, RouterId, TaskId, WorkerId

# Lua's numbers are doubles, so incarnations travel as text of one width and compare as text.
INCARNATION_DIGITS = 20


def incarnation_text(incarnation: int) -> str:
    """The incarnation in fixed width: its order as text is its order as a number."""
    return f"{incarnation:0{INCARNATION_DIGITS}d}"


def page_key(holding: Holding) -> str:
    """Where a holding stands in the index by worker: `length:worker:leg|task`."""
    worker_id = holding.worker.worker_id
    claim = holding.claim
    return f"{len(worker_id.encode())}:{worker_id}:{claim.leg}|{claim.task_id}"


def parse_holding(field: str, record: str) -> Holding:
    """Field: `leg|task`. Record: state, offline, attempt, sequence number, its outcome,
    blocks of the three shares, both incarnations, length of the worker id, worker id, router id.
    """
    leg_text, _, task_id = field.partition("|")
    leg: Leg = "prefill" if leg_text == "prefill" else "decode"
    parts = record.split(" ", 11)
    ids = parts[11].encode()
    num_worker_bytes = int(parts[10])
    return Holding(
        claim=Claim(TaskId(task_id), leg, int(parts[2])),
        router=RouterLife(
            RouterId(ids[num_worker_bytes + 1 :].decode()), Incarnation(int(parts[9]))
        ),
        worker=WorkerLife(WorkerId(ids[:num_worker_bytes].decode()), Incarnation(int(parts[8]))),
        num_blocks=sum(int(part) for part in parts[5:8]),
        state="committed" if parts[0] == "1" else "reserved",
        offline=parts[1] == "1",
    )


def parse_worker(worker_id: str, record: str) -> WorkerBook:
    """Record: incarnation, lost, end of lease, capacity, the three thresholds, blocks of the
    three shares, offline blocks.
    """
    parts = record.split(" ")
    incarnation, is_lost = int(parts[0]), parts[1] == "1"
    num_blocks, prompt_reserve, growth_reserve, online_threshold = map(int, parts[3:7])
    num_by_share = dict(zip(SHARES, map(int, parts[7:10]), strict=True))
    return WorkerBook(
        worker=WorkerLife(WorkerId(worker_id), Incarnation(incarnation)),
        num_blocks=num_blocks,
        shares=Shares(prompt_reserve, growth_reserve, online_threshold),
        num_reserved=sum(num_by_share.values()),
        num_by_share=num_by_share,
        num_offline=int(parts[10]),
        is_lost=is_lost,
    )


def parse_router(router_id: str, record: str, now_ms: int) -> RouterLease:
    """Record: incarnation, end of lease, swept."""
    parts = record.split(" ")
    return RouterLease(
        RouterLife(RouterId(router_id), Incarnation(int(parts[0]))), (int(parts[1]) - now_ms) / 1000
    )


def stale_worker(life: WorkerLife) -> StaleIncarnation:
    """The error for a life of a worker that is over."""
    return StaleIncarnation(
        f"life {life.incarnation} of worker {life.worker_id} is over; "
        "register again with a new incarnation"
    )


def stale_router(life: RouterLife) -> StaleIncarnation:
    """The error for a life of a router that is over."""
    return StaleIncarnation(
        f"life {life.incarnation} of router {life.router_id} is over, a newer one has its name; "
        "stop this process, or start it under another name"
    )


def commit_too_large(num_blocks: int, num_held: int) -> InvalidRequest:
    """The error for committing more than is held."""
    return InvalidRequest("num_blocks", f"{num_blocks} exceed the {num_held} held; extend first")
