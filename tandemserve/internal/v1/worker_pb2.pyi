from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionRequest(_message.Message):
    __slots__ = ("hello", "commands", "peer")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    hello: RouterHello
    commands: CommandFrame
    peer: KvExport
    def __init__(self, hello: _Optional[_Union[RouterHello, _Mapping]] = ..., commands: _Optional[_Union[CommandFrame, _Mapping]] = ..., peer: _Optional[_Union[KvExport, _Mapping]] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("hello", "reports")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    hello: WorkerHello
    reports: ReportFrame
    def __init__(self, hello: _Optional[_Union[WorkerHello, _Mapping]] = ..., reports: _Optional[_Union[ReportFrame, _Mapping]] = ...) -> None: ...

class RouterHello(_message.Message):
    __slots__ = ("protocol_version", "router_id", "router_incarnation", "worker_incarnation")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTER_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    WORKER_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    router_id: str
    router_incarnation: int
    worker_incarnation: int
    def __init__(self, protocol_version: _Optional[int] = ..., router_id: _Optional[str] = ..., router_incarnation: _Optional[int] = ..., worker_incarnation: _Optional[int] = ...) -> None: ...

class WorkerHello(_message.Message):
    __slots__ = ("protocol_version", "worker_id", "incarnation", "role", "num_blocks", "block_size", "compatibility", "model_fingerprint", "max_num_seqs", "export")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    COMPATIBILITY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    worker_id: str
    incarnation: int
    role: str
    num_blocks: int
    block_size: int
    compatibility: str
    model_fingerprint: str
    max_num_seqs: int
    export: KvExport
    def __init__(self, protocol_version: _Optional[int] = ..., worker_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., role: _Optional[str] = ..., num_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., compatibility: _Optional[str] = ..., model_fingerprint: _Optional[str] = ..., max_num_seqs: _Optional[int] = ..., export: _Optional[_Union[KvExport, _Mapping]] = ...) -> None: ...

class CommandFrame(_message.Message):
    __slots__ = ("commands",)
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    commands: _containers.RepeatedCompositeFieldContainer[Command]
    def __init__(self, commands: _Optional[_Iterable[_Union[Command, _Mapping]]] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("task_id", "start_prefill", "push_to", "admit_generation", "start_decode", "grant_growth", "cancel")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    START_PREFILL_FIELD_NUMBER: _ClassVar[int]
    PUSH_TO_FIELD_NUMBER: _ClassVar[int]
    ADMIT_GENERATION_FIELD_NUMBER: _ClassVar[int]
    START_DECODE_FIELD_NUMBER: _ClassVar[int]
    GRANT_GROWTH_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    start_prefill: StartPrefill
    push_to: PushTo
    admit_generation: AdmitGeneration
    start_decode: StartDecode
    grant_growth: GrantGrowth
    cancel: CancelTask
    def __init__(self, task_id: _Optional[str] = ..., start_prefill: _Optional[_Union[StartPrefill, _Mapping]] = ..., push_to: _Optional[_Union[PushTo, _Mapping]] = ..., admit_generation: _Optional[_Union[AdmitGeneration, _Mapping]] = ..., start_decode: _Optional[_Union[StartDecode, _Mapping]] = ..., grant_growth: _Optional[_Union[GrantGrowth, _Mapping]] = ..., cancel: _Optional[_Union[CancelTask, _Mapping]] = ...) -> None: ...

class SequenceSpec(_message.Message):
    __slots__ = ("prompt_token_ids", "output_token_ids", "temperature", "top_k", "top_p", "seed", "num_logprobs", "max_tokens", "stop_token_ids", "stop_strings")
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    NUM_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    STOP_STRINGS_FIELD_NUMBER: _ClassVar[int]
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    output_token_ids: _containers.RepeatedScalarFieldContainer[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    num_logprobs: int
    max_tokens: int
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    stop_strings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, prompt_token_ids: _Optional[_Iterable[int]] = ..., output_token_ids: _Optional[_Iterable[int]] = ..., temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., num_logprobs: _Optional[int] = ..., max_tokens: _Optional[int] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., stop_strings: _Optional[_Iterable[str]] = ...) -> None: ...

class StartPrefill(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: SequenceSpec
    def __init__(self, sequence: _Optional[_Union[SequenceSpec, _Mapping]] = ...) -> None: ...

class PushTo(_message.Message):
    __slots__ = ("transfer_id", "export", "block_ids", "generations")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    export: KvExport
    block_ids: _containers.RepeatedScalarFieldContainer[int]
    generations: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, transfer_id: _Optional[str] = ..., export: _Optional[_Union[KvExport, _Mapping]] = ..., block_ids: _Optional[_Iterable[int]] = ..., generations: _Optional[_Iterable[int]] = ...) -> None: ...

class KvExport(_message.Message):
    __slots__ = ("transport", "address", "num_blocks", "block_bytes", "worker_id", "incarnation", "host")
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    transport: str
    address: str
    num_blocks: int
    block_bytes: int
    worker_id: str
    incarnation: int
    host: str
    def __init__(self, transport: _Optional[str] = ..., address: _Optional[str] = ..., num_blocks: _Optional[int] = ..., block_bytes: _Optional[int] = ..., worker_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., host: _Optional[str] = ...) -> None: ...

class AdmitGeneration(_message.Message):
    __slots__ = ("sequence", "num_blocks", "num_kv_blocks", "transfer_id")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    sequence: SequenceSpec
    num_blocks: int
    num_kv_blocks: int
    transfer_id: str
    def __init__(self, sequence: _Optional[_Union[SequenceSpec, _Mapping]] = ..., num_blocks: _Optional[int] = ..., num_kv_blocks: _Optional[int] = ..., transfer_id: _Optional[str] = ...) -> None: ...

class StartDecode(_message.Message):
    __slots__ = ("output_token_ids",)
    OUTPUT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    output_token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, output_token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class GrantGrowth(_message.Message):
    __slots__ = ("num_blocks",)
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    def __init__(self, num_blocks: _Optional[int] = ...) -> None: ...

class CancelTask(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ReportFrame(_message.Message):
    __slots__ = ("tokens", "reports", "load")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[TokenReport]
    reports: _containers.RepeatedCompositeFieldContainer[Report]
    load: WorkerLoad
    def __init__(self, tokens: _Optional[_Iterable[_Union[TokenReport, _Mapping]]] = ..., reports: _Optional[_Iterable[_Union[Report, _Mapping]]] = ..., load: _Optional[_Union[WorkerLoad, _Mapping]] = ...) -> None: ...

class TokenReport(_message.Message):
    __slots__ = ("task_id", "first_token_index", "token_ids", "text", "logprobs", "finish_reason", "matched_string", "matched_token_id")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    MATCHED_STRING_FIELD_NUMBER: _ClassVar[int]
    MATCHED_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    first_token_index: int
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    text: str
    logprobs: _containers.RepeatedCompositeFieldContainer[TokenLogprobs]
    finish_reason: str
    matched_string: str
    matched_token_id: int
    def __init__(self, task_id: _Optional[str] = ..., first_token_index: _Optional[int] = ..., token_ids: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[TokenLogprobs, _Mapping]]] = ..., finish_reason: _Optional[str] = ..., matched_string: _Optional[str] = ..., matched_token_id: _Optional[int] = ...) -> None: ...

class TokenLogprobs(_message.Message):
    __slots__ = ("logprob", "top_token_ids", "top_logprobs")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    top_token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, logprob: _Optional[float] = ..., top_token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class WorkerLoad(_message.Message):
    __slots__ = ("num_free_blocks", "num_running", "num_waiting", "num_backlog_tokens", "is_draining")
    NUM_FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_BACKLOG_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IS_DRAINING_FIELD_NUMBER: _ClassVar[int]
    num_free_blocks: int
    num_running: int
    num_waiting: int
    num_backlog_tokens: int
    is_draining: bool
    def __init__(self, num_free_blocks: _Optional[int] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_backlog_tokens: _Optional[int] = ..., is_draining: bool = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("task_id", "prefill_started", "kv_pushed", "blocks_granted", "blocks_refused", "decode_started", "growth_needed", "preempted", "failed", "released")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    PREFILL_STARTED_FIELD_NUMBER: _ClassVar[int]
    KV_PUSHED_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_GRANTED_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_REFUSED_FIELD_NUMBER: _ClassVar[int]
    DECODE_STARTED_FIELD_NUMBER: _ClassVar[int]
    GROWTH_NEEDED_FIELD_NUMBER: _ClassVar[int]
    PREEMPTED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    prefill_started: PrefillStarted
    kv_pushed: KvPushed
    blocks_granted: BlocksGranted
    blocks_refused: BlocksRefused
    decode_started: DecodeStarted
    growth_needed: GrowthNeeded
    preempted: Preempted
    failed: TaskFailed
    released: TaskReleased
    def __init__(self, task_id: _Optional[str] = ..., prefill_started: _Optional[_Union[PrefillStarted, _Mapping]] = ..., kv_pushed: _Optional[_Union[KvPushed, _Mapping]] = ..., blocks_granted: _Optional[_Union[BlocksGranted, _Mapping]] = ..., blocks_refused: _Optional[_Union[BlocksRefused, _Mapping]] = ..., decode_started: _Optional[_Union[DecodeStarted, _Mapping]] = ..., growth_needed: _Optional[_Union[GrowthNeeded, _Mapping]] = ..., preempted: _Optional[_Union[Preempted, _Mapping]] = ..., failed: _Optional[_Union[TaskFailed, _Mapping]] = ..., released: _Optional[_Union[TaskReleased, _Mapping]] = ...) -> None: ...

class PrefillStarted(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KvPushed(_message.Message):
    __slots__ = ("num_blocks", "num_bytes", "copy_s", "transport")
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    COPY_S_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    num_bytes: int
    copy_s: float
    transport: str
    def __init__(self, num_blocks: _Optional[int] = ..., num_bytes: _Optional[int] = ..., copy_s: _Optional[float] = ..., transport: _Optional[str] = ...) -> None: ...

class BlocksGranted(_message.Message):
    __slots__ = ("transfer_id", "export", "block_ids", "generations")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    export: KvExport
    block_ids: _containers.RepeatedScalarFieldContainer[int]
    generations: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, transfer_id: _Optional[str] = ..., export: _Optional[_Union[KvExport, _Mapping]] = ..., block_ids: _Optional[_Iterable[int]] = ..., generations: _Optional[_Iterable[int]] = ...) -> None: ...

class BlocksRefused(_message.Message):
    __slots__ = ("num_free_blocks",)
    NUM_FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_free_blocks: int
    def __init__(self, num_free_blocks: _Optional[int] = ...) -> None: ...

class DecodeStarted(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GrowthNeeded(_message.Message):
    __slots__ = ("num_blocks",)
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    def __init__(self, num_blocks: _Optional[int] = ...) -> None: ...

class Preempted(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TaskFailed(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class TaskReleased(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
