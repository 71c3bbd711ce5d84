from tandemserve.internal.v1 import kv_export_pb2 as _kv_export_pb2
from tandemserve.internal.v1 import sequence_pb2 as _sequence_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerAdmission(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_ADMISSION_UNSPECIFIED: _ClassVar[WorkerAdmission]
    WORKER_ADMISSION_OPEN: _ClassVar[WorkerAdmission]
    WORKER_ADMISSION_CORDONED: _ClassVar[WorkerAdmission]
    WORKER_ADMISSION_EVACUATING: _ClassVar[WorkerAdmission]

class LeaseKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LEASE_KIND_UNSPECIFIED: _ClassVar[LeaseKind]
    LEASE_KIND_PIPELINE: _ClassVar[LeaseKind]
    LEASE_KIND_EMBEDDING: _ClassVar[LeaseKind]
WORKER_ADMISSION_UNSPECIFIED: WorkerAdmission
WORKER_ADMISSION_OPEN: WorkerAdmission
WORKER_ADMISSION_CORDONED: WorkerAdmission
WORKER_ADMISSION_EVACUATING: WorkerAdmission
LEASE_KIND_UNSPECIFIED: LeaseKind
LEASE_KIND_PIPELINE: LeaseKind
LEASE_KIND_EMBEDDING: LeaseKind

class SessionRequest(_message.Message):
    __slots__ = ("hello", "commands", "peer", "set_admission", "heartbeat")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    SET_ADMISSION_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    hello: RouterHello
    commands: CommandFrame
    peer: _kv_export_pb2.KvExport
    set_admission: SetAdmission
    heartbeat: Heartbeat
    def __init__(self, hello: _Optional[_Union[RouterHello, _Mapping]] = ..., commands: _Optional[_Union[CommandFrame, _Mapping]] = ..., peer: _Optional[_Union[_kv_export_pb2.KvExport, _Mapping]] = ..., set_admission: _Optional[_Union[SetAdmission, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class SessionResponse(_message.Message):
    __slots__ = ("hello", "reports", "heartbeat")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    hello: WorkerHello
    reports: ReportFrame
    heartbeat: HeartbeatAnswer
    def __init__(self, hello: _Optional[_Union[WorkerHello, _Mapping]] = ..., reports: _Optional[_Union[ReportFrame, _Mapping]] = ..., heartbeat: _Optional[_Union[HeartbeatAnswer, _Mapping]] = ...) -> None: ...

class RouterHello(_message.Message):
    __slots__ = ("protocol_version", "router_id", "router_incarnation", "worker_incarnation", "session_number", "heartbeat_timeout_s", "reads_openings")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    ROUTER_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    WORKER_INCARNATION_FIELD_NUMBER: _ClassVar[int]
    SESSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    READS_OPENINGS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    router_id: str
    router_incarnation: int
    worker_incarnation: int
    session_number: int
    heartbeat_timeout_s: float
    reads_openings: bool
    def __init__(self, protocol_version: _Optional[int] = ..., router_id: _Optional[str] = ..., router_incarnation: _Optional[int] = ..., worker_incarnation: _Optional[int] = ..., session_number: _Optional[int] = ..., heartbeat_timeout_s: _Optional[float] = ..., reads_openings: bool = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class HeartbeatAnswer(_message.Message):
    __slots__ = ("number", "num_turns", "turn_s")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NUM_TURNS_FIELD_NUMBER: _ClassVar[int]
    TURN_S_FIELD_NUMBER: _ClassVar[int]
    number: int
    num_turns: int
    turn_s: float
    def __init__(self, number: _Optional[int] = ..., num_turns: _Optional[int] = ..., turn_s: _Optional[float] = ...) -> None: ...

class WorkerHello(_message.Message):
    __slots__ = ("protocol_version", "worker_id", "incarnation", "role", "num_blocks", "block_size", "compatibility", "model_fingerprint", "max_num_seqs", "export", "admission", "max_message_bytes", "num_growth_blocks", "max_task_blocks", "max_num_batched_tokens", "policy", "makes_room", "num_ranks", "start_s", "traits")
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
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_GROWTH_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_TASK_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_BATCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MAKES_ROOM_FIELD_NUMBER: _ClassVar[int]
    NUM_RANKS_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    TRAITS_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    worker_id: str
    incarnation: int
    role: str
    num_blocks: int
    block_size: int
    compatibility: str
    model_fingerprint: str
    max_num_seqs: int
    export: _kv_export_pb2.KvExport
    admission: WorkerAdmission
    max_message_bytes: int
    num_growth_blocks: int
    max_task_blocks: int
    max_num_batched_tokens: int
    policy: str
    makes_room: bool
    num_ranks: int
    start_s: float
    traits: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, protocol_version: _Optional[int] = ..., worker_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., role: _Optional[str] = ..., num_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., compatibility: _Optional[str] = ..., model_fingerprint: _Optional[str] = ..., max_num_seqs: _Optional[int] = ..., export: _Optional[_Union[_kv_export_pb2.KvExport, _Mapping]] = ..., admission: _Optional[_Union[WorkerAdmission, str]] = ..., max_message_bytes: _Optional[int] = ..., num_growth_blocks: _Optional[int] = ..., max_task_blocks: _Optional[int] = ..., max_num_batched_tokens: _Optional[int] = ..., policy: _Optional[str] = ..., makes_room: bool = ..., num_ranks: _Optional[int] = ..., start_s: _Optional[float] = ..., traits: _Optional[_Iterable[str]] = ...) -> None: ...

class SetAdmission(_message.Message):
    __slots__ = ("admission",)
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    admission: WorkerAdmission
    def __init__(self, admission: _Optional[_Union[WorkerAdmission, str]] = ...) -> None: ...

class CommandFrame(_message.Message):
    __slots__ = ("commands",)
    COMMANDS_FIELD_NUMBER: _ClassVar[int]
    commands: _containers.RepeatedCompositeFieldContainer[Command]
    def __init__(self, commands: _Optional[_Iterable[_Union[Command, _Mapping]]] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("task_id", "start_prefill", "push_to", "admit_generation", "start_decode", "grant_growth", "cancel", "resume_generation", "admit_prompt", "make_room")
    TASK_ID_FIELD_NUMBER: _ClassVar[int]
    START_PREFILL_FIELD_NUMBER: _ClassVar[int]
    PUSH_TO_FIELD_NUMBER: _ClassVar[int]
    ADMIT_GENERATION_FIELD_NUMBER: _ClassVar[int]
    START_DECODE_FIELD_NUMBER: _ClassVar[int]
    GRANT_GROWTH_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    RESUME_GENERATION_FIELD_NUMBER: _ClassVar[int]
    ADMIT_PROMPT_FIELD_NUMBER: _ClassVar[int]
    MAKE_ROOM_FIELD_NUMBER: _ClassVar[int]
    task_id: str
    start_prefill: StartPrefill
    push_to: PushTo
    admit_generation: AdmitGeneration
    start_decode: StartDecode
    grant_growth: GrantGrowth
    cancel: CancelTask
    resume_generation: ResumeGeneration
    admit_prompt: AdmitPrompt
    make_room: MakeRoom
    def __init__(self, task_id: _Optional[str] = ..., start_prefill: _Optional[_Union[StartPrefill, _Mapping]] = ..., push_to: _Optional[_Union[PushTo, _Mapping]] = ..., admit_generation: _Optional[_Union[AdmitGeneration, _Mapping]] = ..., start_decode: _Optional[_Union[StartDecode, _Mapping]] = ..., grant_growth: _Optional[_Union[GrantGrowth, _Mapping]] = ..., cancel: _Optional[_Union[CancelTask, _Mapping]] = ..., resume_generation: _Optional[_Union[ResumeGeneration, _Mapping]] = ..., admit_prompt: _Optional[_Union[AdmitPrompt, _Mapping]] = ..., make_room: _Optional[_Union[MakeRoom, _Mapping]] = ...) -> None: ...

class StartPrefill(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: _sequence_pb2.SequenceSpec
    def __init__(self, sequence: _Optional[_Union[_sequence_pb2.SequenceSpec, _Mapping]] = ...) -> None: ...

class PushTo(_message.Message):
    __slots__ = ("transfer_id", "export", "block_ids", "generations", "first_block_index")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_INDEX_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    export: _kv_export_pb2.KvExport
    block_ids: _containers.RepeatedScalarFieldContainer[int]
    generations: _containers.RepeatedScalarFieldContainer[int]
    first_block_index: int
    def __init__(self, transfer_id: _Optional[str] = ..., export: _Optional[_Union[_kv_export_pb2.KvExport, _Mapping]] = ..., block_ids: _Optional[_Iterable[int]] = ..., generations: _Optional[_Iterable[int]] = ..., first_block_index: _Optional[int] = ...) -> None: ...

class AdmitGeneration(_message.Message):
    __slots__ = ("sequence", "num_blocks", "num_kv_blocks", "transfer_id", "source_worker_id", "age_s")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_KV_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    sequence: _sequence_pb2.SequenceSpec
    num_blocks: int
    num_kv_blocks: int
    transfer_id: str
    source_worker_id: str
    age_s: float
    def __init__(self, sequence: _Optional[_Union[_sequence_pb2.SequenceSpec, _Mapping]] = ..., num_blocks: _Optional[int] = ..., num_kv_blocks: _Optional[int] = ..., transfer_id: _Optional[str] = ..., source_worker_id: _Optional[str] = ..., age_s: _Optional[float] = ...) -> None: ...

class AdmitPrompt(_message.Message):
    __slots__ = ("sequence", "num_blocks", "due_in_s", "age_s", "place", "is_answer_held")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DUE_IN_S_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    IS_ANSWER_HELD_FIELD_NUMBER: _ClassVar[int]
    sequence: _sequence_pb2.SequenceSpec
    num_blocks: int
    due_in_s: float
    age_s: float
    place: LentPlace
    is_answer_held: bool
    def __init__(self, sequence: _Optional[_Union[_sequence_pb2.SequenceSpec, _Mapping]] = ..., num_blocks: _Optional[int] = ..., due_in_s: _Optional[float] = ..., age_s: _Optional[float] = ..., place: _Optional[_Union[LentPlace, _Mapping]] = ..., is_answer_held: bool = ...) -> None: ...

class LentPlace(_message.Message):
    __slots__ = ("host_task_id", "first", "num_blocks", "num_response_tokens", "kind")
    HOST_TASK_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_RESPONSE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    host_task_id: str
    first: int
    num_blocks: int
    num_response_tokens: int
    kind: LeaseKind
    def __init__(self, host_task_id: _Optional[str] = ..., first: _Optional[int] = ..., num_blocks: _Optional[int] = ..., num_response_tokens: _Optional[int] = ..., kind: _Optional[_Union[LeaseKind, str]] = ...) -> None: ...

class StartDecode(_message.Message):
    __slots__ = ("output_token_ids", "place")
    OUTPUT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    output_token_ids: _containers.RepeatedScalarFieldContainer[int]
    place: LentPlace
    def __init__(self, output_token_ids: _Optional[_Iterable[int]] = ..., place: _Optional[_Union[LentPlace, _Mapping]] = ...) -> None: ...

class GrantGrowth(_message.Message):
    __slots__ = ("num_blocks",)
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    def __init__(self, num_blocks: _Optional[int] = ...) -> None: ...

class ResumeGeneration(_message.Message):
    __slots__ = ("num_blocks",)
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    def __init__(self, num_blocks: _Optional[int] = ...) -> None: ...

class MakeRoom(_message.Message):
    __slots__ = ("num_blocks", "due_in_s")
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DUE_IN_S_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    due_in_s: float
    def __init__(self, num_blocks: _Optional[int] = ..., due_in_s: _Optional[float] = ...) -> None: ...

class CancelTask(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ReportFrame(_message.Message):
    __slots__ = ("openings", "tokens", "reports", "load", "prefixes")
    OPENINGS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    PREFIXES_FIELD_NUMBER: _ClassVar[int]
    openings: _containers.RepeatedCompositeFieldContainer[Report]
    tokens: _containers.RepeatedCompositeFieldContainer[TokenReport]
    reports: _containers.RepeatedCompositeFieldContainer[Report]
    load: WorkerLoad
    prefixes: PrefixChanges
    def __init__(self, openings: _Optional[_Iterable[_Union[Report, _Mapping]]] = ..., tokens: _Optional[_Iterable[_Union[TokenReport, _Mapping]]] = ..., reports: _Optional[_Iterable[_Union[Report, _Mapping]]] = ..., load: _Optional[_Union[WorkerLoad, _Mapping]] = ..., prefixes: _Optional[_Union[PrefixChanges, _Mapping]] = ...) -> None: ...

class PrefixChanges(_message.Message):
    __slots__ = ("added", "removed", "is_snapshot")
    ADDED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    IS_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    added: _containers.RepeatedScalarFieldContainer[int]
    removed: _containers.RepeatedScalarFieldContainer[int]
    is_snapshot: bool
    def __init__(self, added: _Optional[_Iterable[int]] = ..., removed: _Optional[_Iterable[int]] = ..., is_snapshot: bool = ...) -> None: ...

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
    __slots__ = ("num_free_blocks", "num_running", "num_waiting", "num_backlog_tokens", "is_draining", "num_tasks", "admission", "num_parked", "num_swap_blocks", "num_free_swap_blocks", "pass_time_error", "parked_due_in_s")
    NUM_FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_BACKLOG_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IS_DRAINING_FIELD_NUMBER: _ClassVar[int]
    NUM_TASKS_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    NUM_PARKED_FIELD_NUMBER: _ClassVar[int]
    NUM_SWAP_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_SWAP_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    PASS_TIME_ERROR_FIELD_NUMBER: _ClassVar[int]
    PARKED_DUE_IN_S_FIELD_NUMBER: _ClassVar[int]
    num_free_blocks: int
    num_running: int
    num_waiting: int
    num_backlog_tokens: int
    is_draining: bool
    num_tasks: int
    admission: WorkerAdmission
    num_parked: int
    num_swap_blocks: int
    num_free_swap_blocks: int
    pass_time_error: PassTimeError
    parked_due_in_s: float
    def __init__(self, num_free_blocks: _Optional[int] = ..., num_running: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_backlog_tokens: _Optional[int] = ..., is_draining: bool = ..., num_tasks: _Optional[int] = ..., admission: _Optional[_Union[WorkerAdmission, str]] = ..., num_parked: _Optional[int] = ..., num_swap_blocks: _Optional[int] = ..., num_free_swap_blocks: _Optional[int] = ..., pass_time_error: _Optional[_Union[PassTimeError, _Mapping]] = ..., parked_due_in_s: _Optional[float] = ...) -> None: ...

class PassTimeError(_message.Message):
    __slots__ = ("num_passes", "median", "p90")
    NUM_PASSES_FIELD_NUMBER: _ClassVar[int]
    MEDIAN_FIELD_NUMBER: _ClassVar[int]
    P90_FIELD_NUMBER: _ClassVar[int]
    num_passes: int
    median: float
    p90: float
    def __init__(self, num_passes: _Optional[int] = ..., median: _Optional[float] = ..., p90: _Optional[float] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("task_id", "prefill_started", "kv_pushed", "blocks_granted", "blocks_refused", "decode_started", "growth_needed", "preempted", "failed", "released", "swapped_out", "blocks_inherited", "room_made", "prompt_logprobs")
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
    SWAPPED_OUT_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_INHERITED_FIELD_NUMBER: _ClassVar[int]
    ROOM_MADE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
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
    swapped_out: SwappedOut
    blocks_inherited: BlocksInherited
    room_made: RoomMade
    prompt_logprobs: PromptLogprobs
    def __init__(self, task_id: _Optional[str] = ..., prefill_started: _Optional[_Union[PrefillStarted, _Mapping]] = ..., kv_pushed: _Optional[_Union[KvPushed, _Mapping]] = ..., blocks_granted: _Optional[_Union[BlocksGranted, _Mapping]] = ..., blocks_refused: _Optional[_Union[BlocksRefused, _Mapping]] = ..., decode_started: _Optional[_Union[DecodeStarted, _Mapping]] = ..., growth_needed: _Optional[_Union[GrowthNeeded, _Mapping]] = ..., preempted: _Optional[_Union[Preempted, _Mapping]] = ..., failed: _Optional[_Union[TaskFailed, _Mapping]] = ..., released: _Optional[_Union[TaskReleased, _Mapping]] = ..., swapped_out: _Optional[_Union[SwappedOut, _Mapping]] = ..., blocks_inherited: _Optional[_Union[BlocksInherited, _Mapping]] = ..., room_made: _Optional[_Union[RoomMade, _Mapping]] = ..., prompt_logprobs: _Optional[_Union[PromptLogprobs, _Mapping]] = ...) -> None: ...

class PromptLogprobs(_message.Message):
    __slots__ = ("first_token_index", "logprobs", "top_token_ids", "top_logprobs")
    FIRST_TOKEN_INDEX_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    TOP_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    first_token_index: int
    logprobs: _containers.RepeatedScalarFieldContainer[float]
    top_token_ids: _containers.RepeatedScalarFieldContainer[int]
    top_logprobs: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, first_token_index: _Optional[int] = ..., logprobs: _Optional[_Iterable[float]] = ..., top_token_ids: _Optional[_Iterable[int]] = ..., top_logprobs: _Optional[_Iterable[float]] = ...) -> None: ...

class PrefillStarted(_message.Message):
    __slots__ = ("num_cached_tokens",)
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_cached_tokens: int
    def __init__(self, num_cached_tokens: _Optional[int] = ...) -> None: ...

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
    __slots__ = ("transfer_id", "export", "block_ids", "generations", "first_block_index")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    FIRST_BLOCK_INDEX_FIELD_NUMBER: _ClassVar[int]
    transfer_id: str
    export: _kv_export_pb2.KvExport
    block_ids: _containers.RepeatedScalarFieldContainer[int]
    generations: _containers.RepeatedScalarFieldContainer[int]
    first_block_index: int
    def __init__(self, transfer_id: _Optional[str] = ..., export: _Optional[_Union[_kv_export_pb2.KvExport, _Mapping]] = ..., block_ids: _Optional[_Iterable[int]] = ..., generations: _Optional[_Iterable[int]] = ..., first_block_index: _Optional[int] = ...) -> None: ...

class BlocksRefused(_message.Message):
    __slots__ = ("num_free_blocks",)
    NUM_FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_free_blocks: int
    def __init__(self, num_free_blocks: _Optional[int] = ...) -> None: ...

class BlocksInherited(_message.Message):
    __slots__ = ("num_blocks",)
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    def __init__(self, num_blocks: _Optional[int] = ...) -> None: ...

class DecodeStarted(_message.Message):
    __slots__ = ("transport",)
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    transport: str
    def __init__(self, transport: _Optional[str] = ...) -> None: ...

class GrowthNeeded(_message.Message):
    __slots__ = ("num_blocks",)
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    def __init__(self, num_blocks: _Optional[int] = ...) -> None: ...

class Preempted(_message.Message):
    __slots__ = ("keeps_kv",)
    KEEPS_KV_FIELD_NUMBER: _ClassVar[int]
    keeps_kv: bool
    def __init__(self, keeps_kv: bool = ...) -> None: ...

class SwappedOut(_message.Message):
    __slots__ = ("num_blocks",)
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    def __init__(self, num_blocks: _Optional[int] = ...) -> None: ...

class RoomMade(_message.Message):
    __slots__ = ("num_blocks",)
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    def __init__(self, num_blocks: _Optional[int] = ...) -> None: ...

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
