from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("router_id", "version", "uptime_s", "model", "policy", "ledger_available", "num_prefill_workers", "num_decode_workers", "num_mixed_workers", "num_prompt_queued", "num_prefilling", "num_generation_queued", "num_transferring", "num_decoding", "num_finished", "num_failed", "num_cancelled", "num_output_tokens", "num_preemptions", "num_migrations", "length_calibration", "num_workers_of_other_policy")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    LEDGER_AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    NUM_PREFILL_WORKERS_FIELD_NUMBER: _ClassVar[int]
    NUM_DECODE_WORKERS_FIELD_NUMBER: _ClassVar[int]
    NUM_MIXED_WORKERS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_QUEUED_FIELD_NUMBER: _ClassVar[int]
    NUM_PREFILLING_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATION_QUEUED_FIELD_NUMBER: _ClassVar[int]
    NUM_TRANSFERRING_FIELD_NUMBER: _ClassVar[int]
    NUM_DECODING_FIELD_NUMBER: _ClassVar[int]
    NUM_FINISHED_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILED_FIELD_NUMBER: _ClassVar[int]
    NUM_CANCELLED_FIELD_NUMBER: _ClassVar[int]
    NUM_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_MIGRATIONS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_CALIBRATION_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKERS_OF_OTHER_POLICY_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    version: str
    uptime_s: float
    model: str
    policy: str
    ledger_available: bool
    num_prefill_workers: int
    num_decode_workers: int
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
    length_calibration: _containers.RepeatedCompositeFieldContainer[LengthCalibration]
    num_workers_of_other_policy: int
    def __init__(self, router_id: _Optional[str] = ..., version: _Optional[str] = ..., uptime_s: _Optional[float] = ..., model: _Optional[str] = ..., policy: _Optional[str] = ..., ledger_available: bool = ..., num_prefill_workers: _Optional[int] = ..., num_decode_workers: _Optional[int] = ..., num_mixed_workers: _Optional[int] = ..., num_prompt_queued: _Optional[int] = ..., num_prefilling: _Optional[int] = ..., num_generation_queued: _Optional[int] = ..., num_transferring: _Optional[int] = ..., num_decoding: _Optional[int] = ..., num_finished: _Optional[int] = ..., num_failed: _Optional[int] = ..., num_cancelled: _Optional[int] = ..., num_output_tokens: _Optional[int] = ..., num_preemptions: _Optional[int] = ..., num_migrations: _Optional[int] = ..., length_calibration: _Optional[_Iterable[_Union[LengthCalibration, _Mapping]]] = ..., num_workers_of_other_policy: _Optional[int] = ...) -> None: ...

class LengthCalibration(_message.Message):
    __slots__ = ("tenant", "num_answers", "num_cut", "covered_share", "mean_absolute_error", "mean_relative_error", "allocation_factor")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NUM_ANSWERS_FIELD_NUMBER: _ClassVar[int]
    NUM_CUT_FIELD_NUMBER: _ClassVar[int]
    COVERED_SHARE_FIELD_NUMBER: _ClassVar[int]
    MEAN_ABSOLUTE_ERROR_FIELD_NUMBER: _ClassVar[int]
    MEAN_RELATIVE_ERROR_FIELD_NUMBER: _ClassVar[int]
    ALLOCATION_FACTOR_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    num_answers: int
    num_cut: int
    covered_share: float
    mean_absolute_error: float
    mean_relative_error: float
    allocation_factor: float
    def __init__(self, tenant: _Optional[str] = ..., num_answers: _Optional[int] = ..., num_cut: _Optional[int] = ..., covered_share: _Optional[float] = ..., mean_absolute_error: _Optional[float] = ..., mean_relative_error: _Optional[float] = ..., allocation_factor: _Optional[float] = ...) -> None: ...

class ListWorkersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWorkersResponse(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerView]
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerView, _Mapping]]] = ...) -> None: ...

class WorkerView(_message.Message):
    __slots__ = ("worker_id", "role", "address", "incarnation", "state", "problem", "num_blocks", "num_free_blocks", "block_size", "num_running", "num_waiting", "compatibility", "admission", "num_tasks", "num_swap_blocks", "num_free_swap_blocks", "num_timed_passes", "pass_error_median", "pass_error_p90", "policy", "num_ranks")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    COMPATIBILITY_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    NUM_TASKS_FIELD_NUMBER: _ClassVar[int]
    NUM_SWAP_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_SWAP_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_TIMED_PASSES_FIELD_NUMBER: _ClassVar[int]
    PASS_ERROR_MEDIAN_FIELD_NUMBER: _ClassVar[int]
    PASS_ERROR_P90_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    NUM_RANKS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    role: str
    address: str
    incarnation: int
    state: str
    problem: str
    num_blocks: int
    num_free_blocks: int
    block_size: int
    num_running: int
    num_waiting: int
    compatibility: str
    admission: str
    num_tasks: int
    num_swap_blocks: int
    num_free_swap_blocks: int
    num_timed_passes: int
    pass_error_median: float
    pass_error_p90: float
    policy: str
    num_ranks: int
    def __init__(self, worker_id: _Optional[str] = ..., role: _Optional[str] = ..., address: _Optional[str] = ..., incarnation: _Optional[int] = ..., state: _Optional[str] = ..., problem: _Optional[str] = ..., num_blocks: _Optional[int] = ..., num_free_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., compatibility: _Optional[str] = ..., admission: _Optional[str] = ..., num_tasks: _Optional[int] = ..., num_swap_blocks: _Optional[int] = ..., num_free_swap_blocks: _Optional[int] = ..., num_timed_passes: _Optional[int] = ..., pass_error_median: _Optional[float] = ..., pass_error_p90: _Optional[float] = ..., policy: _Optional[str] = ..., num_ranks: _Optional[int] = ...) -> None: ...

class ListQueuesRequest(_message.Message):
    __slots__ = ("max_tasks",)
    MAX_TASKS_FIELD_NUMBER: _ClassVar[int]
    max_tasks: int
    def __init__(self, max_tasks: _Optional[int] = ...) -> None: ...

class ListQueuesResponse(_message.Message):
    __slots__ = ("num_prompt_tasks", "num_generation_tasks", "prompt_tasks", "generation_tasks", "num_stranded_tasks", "stranded_tasks")
    NUM_PROMPT_TASKS_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATION_TASKS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TASKS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_TASKS_FIELD_NUMBER: _ClassVar[int]
    NUM_STRANDED_TASKS_FIELD_NUMBER: _ClassVar[int]
    STRANDED_TASKS_FIELD_NUMBER: _ClassVar[int]
    num_prompt_tasks: int
    num_generation_tasks: int
    prompt_tasks: _containers.RepeatedCompositeFieldContainer[QueuedTask]
    generation_tasks: _containers.RepeatedCompositeFieldContainer[QueuedTask]
    num_stranded_tasks: int
    stranded_tasks: _containers.RepeatedCompositeFieldContainer[QueuedTask]
    def __init__(self, num_prompt_tasks: _Optional[int] = ..., num_generation_tasks: _Optional[int] = ..., prompt_tasks: _Optional[_Iterable[_Union[QueuedTask, _Mapping]]] = ..., generation_tasks: _Optional[_Iterable[_Union[QueuedTask, _Mapping]]] = ..., num_stranded_tasks: _Optional[int] = ..., stranded_tasks: _Optional[_Iterable[_Union[QueuedTask, _Mapping]]] = ...) -> None: ...

class QueuedTask(_message.Message):
    __slots__ = ("task_id", "tenant", "request_class", "waited_s", "time_to_deadline_s", "num_prompt_tokens", "num_predicted_tokens", "num_occupied_blocks", "waits_for")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_CLASS_FIELD_NUMBER: _ClassVar[int]
    WAITED_S_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PREDICTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_OCCUPIED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    tenant: str
    request_class: str
    waited_s: float
    time_to_deadline_s: float
    num_prompt_tokens: int
    num_predicted_tokens: int
    num_occupied_blocks: int
    waits_for: str
    def __init__(self, task_id: _Optional[str] = ..., tenant: _Optional[str] = ..., request_class: _Optional[str] = ..., waited_s: _Optional[float] = ..., time_to_deadline_s: _Optional[float] = ..., num_prompt_tokens: _Optional[int] = ..., num_predicted_tokens: _Optional[int] = ..., num_occupied_blocks: _Optional[int] = ..., waits_for: _Optional[str] = ...) -> None: ...

class ListReservationsRequest(_message.Message):
    __slots__ = ("max_holdings",)
    MAX_HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    max_holdings: int
    def __init__(self, max_holdings: _Optional[int] = ...) -> None: ...

class ListReservationsResponse(_message.Message):
    __slots__ = ("workers", "holdings", "truncated")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    HOLDINGS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerReservations]
    holdings: _containers.RepeatedCompositeFieldContainer[Holding]
    truncated: bool
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerReservations, _Mapping]]] = ..., holdings: _Optional[_Iterable[_Union[Holding, _Mapping]]] = ..., truncated: bool = ...) -> None: ...

class WorkerReservations(_message.Message):
    __slots__ = ("worker_id", "incarnation", "num_blocks", "num_reserved_blocks")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_RESERVED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: int
    num_blocks: int
    num_reserved_blocks: int
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., num_blocks: _Optional[int] = ..., num_reserved_blocks: _Optional[int] = ...) -> None: ...

class Holding(_message.Message):
    __slots__ = ("task_id", "leg", "worker_id", "router_id", "num_blocks", "state")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    LEG_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    leg: str
    worker_id: str
    router_id: str
    num_blocks: int
    state: str
    def __init__(self, task_id: _Optional[str] = ..., leg: _Optional[str] = ..., worker_id: _Optional[str] = ..., router_id: _Optional[str] = ..., num_blocks: _Optional[int] = ..., state: _Optional[str] = ...) -> None: ...

class ListRequestsRequest(_message.Message):
    __slots__ = ("max_requests", "state", "tenant", "request_class", "phase", "worker_id")
    MAX_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_CLASS_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    max_requests: int
    state: str
    tenant: str
    request_class: str
    phase: str
    worker_id: str
    def __init__(self, max_requests: _Optional[int] = ..., state: _Optional[str] = ..., tenant: _Optional[str] = ..., request_class: _Optional[str] = ..., phase: _Optional[str] = ..., worker_id: _Optional[str] = ...) -> None: ...

class ListRequestsResponse(_message.Message):
    __slots__ = ("requests", "num_matching", "num_running", "num_ended")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NUM_MATCHING_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_ENDED_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[RequestView]
    num_matching: int
    num_running: int
    num_ended: int
    def __init__(self, requests: _Optional[_Iterable[_Union[RequestView, _Mapping]]] = ..., num_matching: _Optional[int] = ..., num_running: _Optional[int] = ..., num_ended: _Optional[int] = ...) -> None: ...

class RequestView(_message.Message):
    __slots__ = ("request_id", "tenant", "request_class", "session", "state", "age_s", "ended_ago_s", "time_to_deadline_s", "num_prompt_tokens", "max_tokens", "error_code", "error_message", "answers")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_CLASS_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    ENDED_AGO_S_FIELD_NUMBER: _ClassVar[int]
    TIME_TO_DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ERROR_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    request_class: str
    session: str
    state: str
    age_s: float
    ended_ago_s: float
    time_to_deadline_s: float
    num_prompt_tokens: int
    max_tokens: int
    error_code: str
    error_message: str
    answers: _containers.RepeatedCompositeFieldContainer[AnswerView]
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ..., request_class: _Optional[str] = ..., session: _Optional[str] = ..., state: _Optional[str] = ..., age_s: _Optional[float] = ..., ended_ago_s: _Optional[float] = ..., time_to_deadline_s: _Optional[float] = ..., num_prompt_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ..., error_code: _Optional[str] = ..., error_message: _Optional[str] = ..., answers: _Optional[_Iterable[_Union[AnswerView, _Mapping]]] = ...) -> None: ...

class AnswerView(_message.Message):
    __slots__ = ("index", "phase", "phase_s", "num_output_tokens", "prefill_worker", "decode_worker", "waits_for", "num_tries", "num_preemptions", "num_migrations")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    PHASE_S_FIELD_NUMBER: _ClassVar[int]
    NUM_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_WORKER_FIELD_NUMBER: _ClassVar[int]
    DECODE_WORKER_FIELD_NUMBER: _ClassVar[int]
    WAITS_FOR_FIELD_NUMBER: _ClassVar[int]
    NUM_TRIES_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    NUM_MIGRATIONS_FIELD_NUMBER: _ClassVar[int]
    index: int
    phase: str
    phase_s: float
    num_output_tokens: int
    prefill_worker: str
    decode_worker: str
    waits_for: str
    num_tries: int
    num_preemptions: int
    num_migrations: int
    def __init__(self, index: _Optional[int] = ..., phase: _Optional[str] = ..., phase_s: _Optional[float] = ..., num_output_tokens: _Optional[int] = ..., prefill_worker: _Optional[str] = ..., decode_worker: _Optional[str] = ..., waits_for: _Optional[str] = ..., num_tries: _Optional[int] = ..., num_preemptions: _Optional[int] = ..., num_migrations: _Optional[int] = ...) -> None: ...

class GetRequestRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class GetRequestResponse(_message.Message):
    __slots__ = ("request", "timelines")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TIMELINES_FIELD_NUMBER: _ClassVar[int]
    request: RequestView
    timelines: _containers.RepeatedCompositeFieldContainer[Timeline]
    def __init__(self, request: _Optional[_Union[RequestView, _Mapping]] = ..., timelines: _Optional[_Iterable[_Union[Timeline, _Mapping]]] = ...) -> None: ...

class Timeline(_message.Message):
    __slots__ = ("index", "events", "num_dropped")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    NUM_DROPPED_FIELD_NUMBER: _ClassVar[int]
    index: int
    events: _containers.RepeatedCompositeFieldContainer[TimelineEvent]
    num_dropped: int
    def __init__(self, index: _Optional[int] = ..., events: _Optional[_Iterable[_Union[TimelineEvent, _Mapping]]] = ..., num_dropped: _Optional[int] = ...) -> None: ...

class TimelineEvent(_message.Message):
    __slots__ = ("at_s", "change", "phase", "worker_id", "num_blocks", "num_output_tokens", "number_of_try", "reason", "started_at_s")
    AT_S_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUMBER_OF_TRY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_S_FIELD_NUMBER: _ClassVar[int]
    at_s: float
    change: str
    phase: str
    worker_id: str
    num_blocks: int
    num_output_tokens: int
    number_of_try: int
    reason: str
    started_at_s: float
    def __init__(self, at_s: _Optional[float] = ..., change: _Optional[str] = ..., phase: _Optional[str] = ..., worker_id: _Optional[str] = ..., num_blocks: _Optional[int] = ..., num_output_tokens: _Optional[int] = ..., number_of_try: _Optional[int] = ..., reason: _Optional[str] = ..., started_at_s: _Optional[float] = ...) -> None: ...

class CancelRequestsRequest(_message.Message):
    __slots__ = ("request_ids", "operator", "reason")
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    OPERATOR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    operator: str
    reason: str
    def __init__(self, request_ids: _Optional[_Iterable[str]] = ..., operator: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CancelRequestsResponse(_message.Message):
    __slots__ = ("outcomes",)
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedCompositeFieldContainer[CancelOutcome]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[CancelOutcome, _Mapping]]] = ...) -> None: ...

class CancelOutcome(_message.Message):
    __slots__ = ("request_id", "cancelled", "state")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    cancelled: bool
    state: str
    def __init__(self, request_id: _Optional[str] = ..., cancelled: bool = ..., state: _Optional[str] = ...) -> None: ...

class SetWorkerAdmissionRequest(_message.Message):
    __slots__ = ("worker_id", "admission", "force")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    admission: str
    force: bool
    def __init__(self, worker_id: _Optional[str] = ..., admission: _Optional[str] = ..., force: bool = ...) -> None: ...

class SetWorkerAdmissionResponse(_message.Message):
    __slots__ = ("worker",)
    WORKER_FIELD_NUMBER: _ClassVar[int]
    worker: WorkerView
    def __init__(self, worker: _Optional[_Union[WorkerView, _Mapping]] = ...) -> None: ...
