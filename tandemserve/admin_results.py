"""What the admin calls take and return; fields mirror proto/tandemserve/api/v1/admin.proto."""

from dataclasses import dataclass

__all__ = [
    "AnswerView",
    "CancelOutcome",
    "ClusterStatus",
    "Holding",
    "LengthCalibration",
    "QueuedTask",
    "Queues",
    "RequestFilter",
    "RequestHistory",
    "RequestList",
    "RequestView",
    "Reservations",
    "Timeline",
    "TimelineEvent",
    "WorkerReservations",
    "WorkerView",
]


@dataclass(frozen=True, slots=True)
class LengthCalibration:
    """What became of one router's latest predictions of response lengths."""

    # Empty: over all of them.
    tenant: str
    num_answers: int
    # Of these, cut at max_tokens.
    num_cut: int
    # Share of the answers that were no longer than the bound.
    covered_share: float
    # Between the predicted mean and the answer: tokens, and a share of the answer.
    mean_absolute_error: float
    mean_relative_error: float
    # Tokens of all bounds for each token of all answers.
    allocation_factor: float


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
    # They compute prompts and answers alike, and are in none of the two numbers above.
    num_mixed_workers: int
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
    # Over all tenants first, then of each that had an answer lately; empty before the first answer.
    length_calibration: tuple[LengthCalibration, ...] = ()
    # Connected workers that decide by another policy than this router.
    num_workers_of_other_policy: int = 0


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker as the router sees it."""

    worker_id: str
    # "prefill", "decode" or "mixed".
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
    # "open", "cordoned" (no new tasks), "evacuating" (its tasks move elsewhere, too) or "leaving";
    # empty while it is not connected.
    admission: str
    # Tasks that hold or await anything there, of all routers.
    num_tasks: int
    # Blocks of host memory for KV that had to leave the device; both 0 where there are none.
    num_swap_blocks: int = 0
    num_free_swap_blocks: int = 0
    # Passes that were timed since the worker started, and how far its model of them was off over
    # the last ones: |predicted - measured| / measured.
    num_timed_passes: int = 0
    pass_error_median: float = 0.0
    pass_error_p90: float = 0.0
    # By which it decides; other than the router's where the two were started differently, empty
    # where it is not connected or too old to say.
    policy: str = ""
    # Processes among which its model is divided (--tensor-parallel-size); 0 while it is not
    # connected.
    num_ranks: int = 0


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
    # Prompts that no pair of the present workers could hold: they wait aside for another worker.
    num_stranded_tasks: int
    stranded_tasks: tuple[QueuedTask, ...]


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


@dataclass(frozen=True, slots=True)
class AnswerView:
    """One of the n answers of a request, as far as it has come."""

    index: int
    # Of docs/life-of-a-request.md.
    phase: str
    # How long it has been in it.
    phase_s: float
    num_output_tokens: int
    # Of the present try, or the last ones; may be empty.
    prefill_worker: str
    decode_worker: str
    # In words; empty where it runs.
    waits_for: str
    num_tries: int
    num_preemptions: int
    # Lost or failed workers, and workers that an operator emptied.
    num_migrations: int


@dataclass(frozen=True, slots=True)
class RequestView:
    """A request that runs or ended recently."""

    request_id: str
    tenant: str
    request_class: str
    session: str
    # "running", "finished", "failed" or "cancelled".
    state: str
    # Since it arrived.
    age_s: float
    # None while it runs.
    ended_ago_s: float | None
    # None where the caller set none; negative once it has passed.
    time_to_deadline_s: float | None
    num_prompt_tokens: int
    max_tokens: int
    # Of a request that failed or was cancelled, else empty.
    error_code: str
    error_message: str
    answers: tuple[AnswerView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFilter:
    """Which requests to list; empty fields match all."""

    # "running" or "ended".
    state: str = ""
    tenant: str = ""
    request_class: str = ""
    # Of at least one answer.
    phase: str = ""
    # Of at least one answer, on either leg.
    worker_id: str = ""


@dataclass(frozen=True, slots=True)
class RequestList:
    """Requests of one router."""

    # Running ones from the oldest on, then ended ones from the latest back.
    requests: tuple[RequestView, ...]
    # How many match, listed or not.
    num_matching: int
    num_running: int
    # Ended ones that are still remembered.
    num_ended: int


@dataclass(frozen=True, slots=True)
class TimelineEvent:
    """One change of phase, a row of the table in docs/life-of-a-request.md."""

    # Since the request arrived.
    at_s: float
    change: str
    # The phase from then on.
    phase: str
    # Who works on it, or parks its KV, from then on.
    worker_id: str
    num_blocks: int
    num_output_tokens: int
    number_of_try: int
    # Why, where the change does not say it all.
    reason: str
    # When the worker began, where it had a queue of its own.
    started_at_s: float | None


@dataclass(frozen=True, slots=True)
class Timeline:
    """What happened to one answer."""

    index: int
    events: tuple[TimelineEvent, ...]
    # Left out after the first ones.
    num_dropped: int


@dataclass(frozen=True, slots=True)
class RequestHistory:
    """One request with everything that happened to it."""

    request: RequestView
    timelines: tuple[Timeline, ...]


@dataclass(frozen=True, slots=True)
class CancelOutcome:
    """What became of one request that was to be cancelled."""

    request_id: str
    # False where it had ended before.
    cancelled: bool
    # "cancelled", or how it had ended.
    state: str
