"""Values inside the messages between router and worker, and the checks of what a peer sent.

Encoding trusts our own dataclasses; decoding trusts nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from scheduling.batch_time_online import PassTimeError
from scheduling.ids import BlockId, Generation, Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvDoor, KvExport, KvTarget
from scheduling.messages import Admission, WorkerLoad
from tandemserve.internal.v1 import kv_export_pb2
from tandemserve.internal.v1 import worker_pb2 as pb

MAX_NAME_CHARS: Final = 512
# Ways into one pool besides the first.
MAX_KV_DOORS: Final = 8
# Ranks of one worker besides the first.
MAX_OTHER_RANKS: Final = 63
MAX_KV_SLICES: Final = 1024
MAX_RANKS: Final = 1024
# What two workers must have in common, each with a name.
MAX_TRAITS: Final = 64
# Nobody waits for a worker any longer.
MAX_START_S: Final = 86_400.0
# Token ids and counts that later become 32-bit signed integers in tensors.
MAX_INT32: Final = 2**31 - 1
_PROTO_BY_ADMISSION = {
    Admission.OPEN: pb.WORKER_ADMISSION_OPEN,
    Admission.CORDONED: pb.WORKER_ADMISSION_CORDONED,
    Admission.EVACUATING: pb.WORKER_ADMISSION_EVACUATING,
}
_ADMISSION_BY_PROTO = {number: admission for admission, number in _PROTO_BY_ADMISSION.items()}


class ProtocolError(Exception):
    """The peer sent what no peer of this version may send; end the session with it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}; check that all processes run one version")
        self.field, self.problem = field, problem


# --- checks -----------------------------------------------------------------------------------


def checked_name(field: str, value: str) -> str:
    """A name that is there and of sane length."""
    if not 0 < len(value) <= MAX_NAME_CHARS:
        raise ProtocolError(field, f"needs 1 to {MAX_NAME_CHARS} characters, has {len(value)}")
    return value


def checked_text(field: str, value: str) -> str:
    """A text of sane length, perhaps empty."""
    if len(value) > MAX_NAME_CHARS:
        raise ProtocolError(field, f"needs at most {MAX_NAME_CHARS} characters, has {len(value)}")
    return value


def checked_count(field: str, value: int, *, least: int = 0, most: int = MAX_INT32) -> int:
    """An integer within its bounds."""
    if not least <= value <= most:
        raise ProtocolError(field, f"must be {least} to {most}, is {value}")
    return value


def checked_float(
    field: str, value: float, *, least: float = -math.inf, most: float = math.inf
) -> float:
    """A finite number within its bounds."""
    if not (math.isfinite(value) and least <= value <= most):
        raise ProtocolError(field, f"must be a finite number in [{least}, {most}], is {value}")
    return value


def finite_or_none(value: float) -> float | None:
    """Infinity, which means any time, travels as an absent field."""
    return None if value == math.inf else value


def checked_token_ids(field: str, values: Sequence[int]) -> tuple[int, ...]:
    """Token ids that fit a 32-bit signed integer; the vocabulary is the engine's to check."""
    ids = tuple(values)
    if ids and max(ids) > MAX_INT32:
        raise ProtocolError(field, f"holds a token id above {MAX_INT32}")
    return ids


# --- values -----------------------------------------------------------------------------------


def export_to_proto(export: KvExport) -> kv_export_pb2.KvExport:
    """A pool's address, as it travels."""
    return kv_export_pb2.KvExport(
        transport=export.transport,
        address=export.address,
        num_blocks=export.num_blocks,
        block_bytes=export.block_bytes,
        worker_id=export.worker_id,
        incarnation=export.incarnation,
        host=export.host,
        token=export.token,
        alternatives=[
            kv_export_pb2.KvDoor(
                transport=door.transport, address=door.address, host=door.host, token=door.token
            )
            for door in export.alternatives
        ],
        num_scratch_blocks=export.num_scratch_blocks,
        first_slice=export.first_slice,
        num_slices=export.num_slices,
        other_ranks=[export_to_proto(rank) for rank in export.other_ranks],
    )


def export_from_proto(message: kv_export_pb2.KvExport) -> KvExport:
    """Inverse of `export_to_proto`. Raises: ProtocolError."""
    ranks = message.other_ranks
    if len(ranks) > MAX_OTHER_RANKS:
        raise ProtocolError("export.other_ranks", f"more than {MAX_OTHER_RANKS}")
    if any(rank.other_ranks for rank in ranks):
        raise ProtocolError("export.other_ranks", "has other ranks itself")
    return replace(
        _pool_from_proto(message), other_ranks=tuple(_pool_from_proto(rank) for rank in ranks)
    )


def _pool_from_proto(message: kv_export_pb2.KvExport) -> KvExport:
    """The pool of one rank."""
    return KvExport(
        transport=checked_name("export.transport", message.transport),
        address=message.address,
        num_blocks=checked_count("export.num_blocks", message.num_blocks, least=1),
        block_bytes=checked_count("export.block_bytes", message.block_bytes, least=1, most=2**48),
        worker_id=WorkerId(checked_name("export.worker_id", message.worker_id)),
        incarnation=Incarnation(
            checked_count("export.incarnation", message.incarnation, most=2**63 - 1)
        ),
        host=message.host,
        token=message.token,
        alternatives=_doors_from_proto(message.alternatives),
        num_scratch_blocks=checked_count(
            "export.num_scratch_blocks", message.num_scratch_blocks, most=message.num_blocks
        ),
        first_slice=checked_count("export.first_slice", message.first_slice, most=MAX_KV_SLICES),
        num_slices=checked_count("export.num_slices", message.num_slices or 1, most=MAX_KV_SLICES),
    )


def _doors_from_proto(messages: Sequence[kv_export_pb2.KvDoor]) -> tuple[KvDoor, ...]:
    if len(messages) > MAX_KV_DOORS:
        raise ProtocolError("export.alternatives", f"more than {MAX_KV_DOORS}")
    return tuple(
        KvDoor(
            transport=checked_name("export.alternatives.transport", door.transport),
            address=door.address,
            host=door.host,
            token=door.token,
        )
        for door in messages
    )


def target_fields(target: KvTarget) -> dict[str, Any]:
    """The fields that PushTo and BlocksGranted have in common."""
    return {
        "transfer_id": target.transfer_id,
        "export": export_to_proto(target.export),
        "block_ids": target.block_ids,
        "generations": target.generations,
        "first_block_index": target.first_block_index,
    }


def target_from_proto(message: pb.PushTo | pb.BlocksGranted) -> KvTarget:
    """A target whose blocks lie inside the exported pool, none of them twice."""
    if not message.HasField("export"):
        raise ProtocolError("export", "is missing")
    export = export_from_proto(message.export)
    block_ids = tuple(BlockId(value) for value in message.block_ids)
    if len(message.generations) != len(block_ids):
        raise ProtocolError(
            "generations", f"{len(message.generations)} for {len(block_ids)} block_ids"
        )
    if block_ids and max(block_ids) >= export.num_kv_blocks:
        raise ProtocolError(
            "block_ids", f"{max(block_ids)} is outside of {export.num_kv_blocks} blocks"
        )
    if len(set(block_ids)) != len(block_ids):
        raise ProtocolError("block_ids", "names a block twice")
    return KvTarget(
        transfer_id=checked_name("transfer_id", message.transfer_id),
        export=export,
        block_ids=block_ids,
        generations=tuple(Generation(value) for value in message.generations),
        first_block_index=checked_count("first_block_index", message.first_block_index),
    )


def load_to_proto(load: WorkerLoad) -> pb.WorkerLoad:
    """How full the worker is, but for `write_pass_time_error`."""
    return pb.WorkerLoad(
        num_free_blocks=load.num_free_blocks,
        num_running=load.num_running,
        num_waiting=load.num_waiting,
        num_backlog_tokens=load.num_backlog_tokens,
        is_draining=load.is_draining,
        num_tasks=load.num_tasks,
        admission=admission_to_proto(load.admission),
        num_parked=load.num_parked,
        num_swap_blocks=load.num_swap_blocks,
        num_free_swap_blocks=load.num_free_swap_blocks,
        parked_due_in_s=load.parked_due_in_s,
    )


def load_from_proto(message: pb.WorkerLoad) -> WorkerLoad:
    """How full the worker is."""
    return WorkerLoad(
        num_free_blocks=checked_count("load.num_free_blocks", message.num_free_blocks),
        num_running=checked_count("load.num_running", message.num_running),
        num_waiting=checked_count("load.num_waiting", message.num_waiting),
        num_backlog_tokens=checked_count(
            "load.num_backlog_tokens", message.num_backlog_tokens, most=2**63 - 1
        ),
        is_draining=message.is_draining,
        num_tasks=checked_count("load.num_tasks", message.num_tasks),
        admission=admission_from_proto(message.admission),
        num_parked=checked_count("load.num_parked", message.num_parked),
        num_swap_blocks=checked_count("load.num_swap_blocks", message.num_swap_blocks),
        num_free_swap_blocks=checked_count(
            "load.num_free_swap_blocks", message.num_free_swap_blocks
        ),
        parked_due_in_s=(
            checked_float("load.parked_due_in_s", message.parked_due_in_s)
            if message.HasField("parked_due_in_s")
            else None
        ),
        pass_time_error=_pass_time_error_from_proto(message),
    )


def write_pass_time_error(load: WorkerLoad, message: pb.WorkerLoad) -> None:
    """What changes seldom is not sent with every load."""
    error = load.pass_time_error
    if error is not None:
        told = message.pass_time_error
        told.num_passes, told.median, told.p90 = error.num_passes, error.median, error.p90


def _pass_time_error_from_proto(load: pb.WorkerLoad) -> PassTimeError | None:
    if not load.HasField("pass_time_error"):
        return None
    error = load.pass_time_error
    return PassTimeError(
        num_passes=checked_count("pass_time_error.num_passes", error.num_passes, most=2**63 - 1),
        median=checked_float("pass_time_error.median", error.median, least=0.0),
        p90=checked_float("pass_time_error.p90", error.p90, least=0.0),
    )


def admission_to_proto(admission: Admission) -> pb.WorkerAdmission:
    """What a worker takes on, as it travels."""
    return _PROTO_BY_ADMISSION[admission]


def admission_from_proto(value: pb.WorkerAdmission) -> Admission:
    """Inverse of `admission_to_proto`. Raises: ProtocolError."""
    if value not in _ADMISSION_BY_PROTO:
        raise ProtocolError("admission", f"{value} is unknown")
    return _ADMISSION_BY_PROTO[value]


def task_id_from_proto(value: str) -> TaskId:
    """Every command and report names its task."""
    return TaskId(checked_name("task_id", value))
