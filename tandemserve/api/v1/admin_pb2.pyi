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
    __slots__ = ("router_id", "version", "uptime_s", "model", "policy", "ledger_available", "num_prefill_workers", "num_decode_workers", "num_prompt_queued", "num_prefilling", "num_generation_queued", "num_transferring", "num_decoding", "num_finished", "num_failed", "num_cancelled", "num_output_tokens", "num_preemptions", "num_migrations")
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    LEDGER_AVAILABLE_FIELD_NUMBER: _ClassVar[int]
    NUM_PREFILL_WORKERS_FIELD_NUMBER: _ClassVar[int]
    NUM_DECODE_WORKERS_FIELD_NUMBER: _ClassVar[int]
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
    router_id: str
    version: str
    uptime_s: float
    model: str
    policy: str
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
    def __init__(self, router_id: _Optional[str] = ..., version: _Optional[str] = ..., uptime_s: _Optional[float] = ..., model: _Optional[str] = ..., policy: _Optional[str] = ..., ledger_available: bool = ..., num_prefill_workers: _Optional[int] = ..., num_decode_workers: _Optional[int] = ..., num_prompt_queued: _Optional[int] = ..., num_prefilling: _Optional[int] = ..., num_generation_queued: _Optional[int] = ..., num_transferring: _Optional[int] = ..., num_decoding: _Optional[int] = ..., num_finished: _Optional[int] = ..., num_failed: _Optional[int] = ..., num_cancelled: _Optional[int] = ..., num_output_tokens: _Optional[int] = ..., num_preemptions: _Optional[int] = ..., num_migrations: _Optional[int] = ...) -> None: ...

class ListWorkersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWorkersResponse(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerView]
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerView, _Mapping]]] = ...) -> None: ...

class WorkerView(_message.Message):
    __slots__ = ("worker_id", "role", "address", "incarnation", "state", "problem", "num_blocks", "num_free_blocks", "block_size", "num_running", "num_waiting", "compatibility")
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
    def __init__(self, worker_id: _Optional[str] = ..., role: _Optional[str] = ..., address: _Optional[str] = ..., incarnation: _Optional[int] = ..., state: _Optional[str] = ..., problem: _Optional[str] = ..., num_blocks: _Optional[int] = ..., num_free_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., compatibility: _Optional[str] = ...) -> None: ...

class ListQueuesRequest(_message.Message):
    __slots__ = ("max_tasks",)
    MAX_TASKS_FIELD_NUMBER: _ClassVar[int]
    max_tasks: int
    def __init__(self, max_tasks: _Optional[int] = ...) -> None: ...

class ListQueuesResponse(_message.Message):
    __slots__ = ("num_prompt_tasks", "num_generation_tasks", "prompt_tasks", "generation_tasks")
    NUM_PROMPT_TASKS_FIELD_NUMBER: _ClassVar[int]
    NUM_GENERATION_TASKS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TASKS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_TASKS_FIELD_NUMBER: _ClassVar[int]
    num_prompt_tasks: int
    num_generation_tasks: int
    prompt_tasks: _containers.RepeatedCompositeFieldContainer[QueuedTask]
    generation_tasks: _containers.RepeatedCompositeFieldContainer[QueuedTask]
    def __init__(self, num_prompt_tasks: _Optional[int] = ..., num_generation_tasks: _Optional[int] = ..., prompt_tasks: _Optional[_Iterable[_Union[QueuedTask, _Mapping]]] = ..., generation_tasks: _Optional[_Iterable[_Union[QueuedTask, _Mapping]]] = ...) -> None: ...

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
