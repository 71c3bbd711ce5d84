from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KvExport(_message.Message):
    __slots__ = ("transport", "address", "num_blocks", "block_bytes", "worker_id", "incarnation", "host", "token", "alternatives", "num_scratch_blocks", "first_slice", "num_slices", "other_ranks")
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVES_FIELD_NUMBER: _ClassVar[int]
    NUM_SCRATCH_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    FIRST_SLICE_FIELD_NUMBER: _ClassVar[int]
    NUM_SLICES_FIELD_NUMBER: _ClassVar[int]
    OTHER_RANKS_FIELD_NUMBER: _ClassVar[int]
    transport: str
    address: str
    num_blocks: int
    block_bytes: int
    worker_id: str
    incarnation: int
    host: str
    token: str
    alternatives: _containers.RepeatedCompositeFieldContainer[KvDoor]
    num_scratch_blocks: int
    first_slice: int
    num_slices: int
    other_ranks: _containers.RepeatedCompositeFieldContainer[KvExport]
    def __init__(self, transport: _Optional[str] = ..., address: _Optional[str] = ..., num_blocks: _Optional[int] = ..., block_bytes: _Optional[int] = ..., worker_id: _Optional[str] = ..., incarnation: _Optional[int] = ..., host: _Optional[str] = ..., token: _Optional[str] = ..., alternatives: _Optional[_Iterable[_Union[KvDoor, _Mapping]]] = ..., num_scratch_blocks: _Optional[int] = ..., first_slice: _Optional[int] = ..., num_slices: _Optional[int] = ..., other_ranks: _Optional[_Iterable[_Union[KvExport, _Mapping]]] = ...) -> None: ...

class KvDoor(_message.Message):
    __slots__ = ("transport", "address", "host", "token")
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    transport: str
    address: str
    host: str
    token: str
    def __init__(self, transport: _Optional[str] = ..., address: _Optional[str] = ..., host: _Optional[str] = ..., token: _Optional[str] = ...) -> None: ...
