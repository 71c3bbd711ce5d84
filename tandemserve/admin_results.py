"""What the admin calls return; fields mirror proto/tandemserve/api/v1/admin.proto."""

from dataclasses import dataclass

__all__ = [
    "ClusterStatus",
    "Holding",
    "QueuedTask",
    "Queues",
    "Reservations",
    "WorkerReservations",
    "WorkerView",
]


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """One router's view of the whole cluster."""

    router_id: str
    version: str
    uptime_s: float
    model: str
    policy: str
    # False while Redis is gone: requests are admitted against the workers' own capacity.
    ledger_available: bool
    num_prefill_workers: int
    num_decode_workers: int
    num_prompt_queued: int
    num_prefilling: int
    num_generation_queued: int
    num_transferring: int
    num_decoding: int
    num_finished: int
    num_failed: int
    num_cancelled: int
    num_output_tokens: int
    num_preemptions: int
    num_migrations: int


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker as the router sees it."""

    worker_id: str
    # "prefill" or "decode".
    role: str
    address: str
    incarnation: int
    # "connecting", "ready", "incompatible" or "lost".
    state: str
    # Why, where state is not "ready".
    problem: str
    num_blocks: int
    num_free_blocks: int
    block_size: int
    num_running: int
    num_waiting: int
    compatibility: str


@dataclass(frozen=True, slots=True)
class QueuedTask:
    """One waiting prompt or generation task."""

    task_id: str
    tenant: str
    request_class: str
    waited_s: float
    # Negative once the deadline has passed.
    time_to_deadline_s: float
    num_prompt_tokens: int
    num_predicted_tokens: int
    num_occupied_blocks: int
    waits_for: str


@dataclass(frozen=True, slots=True)
class Queues:
    """Both queues, in the order in which their tasks would run."""

    # Whole lengths; the lists may be cut at max_tasks.
    num_prompt_tasks: int
    num_generation_tasks: int
    prompt_tasks: tuple[QueuedTask, ...]
    generation_tasks: tuple[QueuedTask, ...]


@dataclass(frozen=True, slots=True)
class WorkerReservations:
    """How much of one worker is promised."""

    worker_id: str
    incarnation: int
    num_blocks: int
    num_reserved_blocks: int


@dataclass(frozen=True, slots=True)
class Holding:
    """Blocks that one task holds on one worker."""

    task_id: str
    # "prefill" or "decode".
    leg: str
    worker_id: str
    router_id: str
    num_blocks: int
    # "reserved" or "committed".
    state: str


@dataclass(frozen=True, slots=True)
class Reservations:
    """The ledger: promised blocks by worker and by task."""

    workers: tuple[WorkerReservations, ...]
    holdings: tuple[Holding, ...]
    # More holdings exist than were listed.
    truncated: bool
