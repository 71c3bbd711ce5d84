"""Values inside the messages between router and worker, and the checks of what a peer sent.

Encoding trusts our own dataclasses; decoding trusts nothing.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

from scheduling.ids import BlockId, Generation, Incarnation, TaskId, WorkerId
from scheduling.messages import KvExport, KvTarget, SequenceSpec, WorkerLoad
from scheduling.sampling import SamplingParams, StopParams, TokenLogprobs
from tandemserve.internal.v1 import worker_pb2 as pb

MAX_NAME_CHARS: Final = 512
MAX_LOGPROBS: Final = 20
MAX_STOP_STRINGS: Final = 64
# Token ids and counts that later become 32-bit signed integers in tensors.
MAX_INT32: Final = 2**31 - 1


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


def checked_token_ids(field: str, values: Sequence[int]) -> tuple[int, ...]:
    """Token ids that fit a 32-bit signed integer; the vocabulary is the engine's to check."""
    ids = tuple(values)
    if ids and max(ids) > MAX_INT32:
        raise ProtocolError(field, f"holds a token id above {MAX_INT32}")
    return ids


# --- values -----------------------------------------------------------------------------------


def sequence_to_proto(sequence: SequenceSpec) -> pb.SequenceSpec:
    """Sampling floats travel in 32 bits, as clients send them."""
    sampling, stop = sequence.sampling, sequence.stop
    return pb.SequenceSpec(
        prompt_token_ids=sequence.prompt_token_ids,
        output_token_ids=sequence.output_token_ids,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed,
        num_logprobs=sampling.num_logprobs,
        max_tokens=stop.max_tokens,
        stop_token_ids=stop.stop_token_ids,
        stop_strings=stop.stop_strings,
    )


def sequence_from_proto(owner: Any) -> SequenceSpec:
    """Take the sequence out of a command that must carry one."""
    if not owner.HasField("sequence"):
        raise ProtocolError("sequence", "is missing")
    message: pb.SequenceSpec = owner.sequence
    if not message.prompt_token_ids:
        raise ProtocolError("sequence.prompt_token_ids", "is empty")
    if len(message.stop_strings) > MAX_STOP_STRINGS or not all(message.stop_strings):
        raise ProtocolError("sequence.stop_strings", f"more than {MAX_STOP_STRINGS}, or one empty")
    num_logprobs = None
    if message.HasField("num_logprobs"):
        num_logprobs = checked_count(
            "sequence.num_logprobs", message.num_logprobs, most=MAX_LOGPROBS
        )
    sampling = SamplingParams(
        temperature=checked_float("sequence.temperature", message.temperature, least=0.0),
        top_k=checked_count("sequence.top_k", message.top_k),
        top_p=_checked_top_p(message.top_p),
        seed=message.seed,
        num_logprobs=num_logprobs,
    )
    stop = StopParams(
        max_tokens=checked_count("sequence.max_tokens", message.max_tokens, least=1),
        stop_token_ids=checked_token_ids("sequence.stop_token_ids", message.stop_token_ids),
        stop_strings=tuple(message.stop_strings),
    )
    return SequenceSpec(
        prompt_token_ids=checked_token_ids("sequence.prompt_token_ids", message.prompt_token_ids),
        output_token_ids=checked_token_ids("sequence.output_token_ids", message.output_token_ids),
        sampling=sampling,
        stop=stop,
    )


def _checked_top_p(value: float) -> float:
    if value <= 0.0:
        raise ProtocolError("sequence.top_p", f"must be above 0, is {value}")
    return checked_float("sequence.top_p", value, most=1.0)


def export_to_proto(export: KvExport) -> pb.KvExport:
    """A pool's address, as it travels."""
    return pb.KvExport(
        transport=export.transport,
        address=export.address,
        num_blocks=export.num_blocks,
        block_bytes=export.block_bytes,
        worker_id=export.worker_id,
        incarnation=export.incarnation,
        host=export.host,
    )


def export_from_proto(message: pb.KvExport) -> KvExport:
    """Inverse of `export_to_proto`. Raises: ProtocolError."""
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
    )


def target_fields(target: KvTarget) -> dict[str, Any]:
    """The fields that PushTo and BlocksGranted have in common."""
    return {
        "transfer_id": target.transfer_id,
        "export": export_to_proto(target.export),
        "block_ids": target.block_ids,
        "generations": target.generations,
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
    if block_ids and max(block_ids) >= export.num_blocks:
        raise ProtocolError(
            "block_ids", f"{max(block_ids)} is outside of {export.num_blocks} blocks"
        )
    if len(set(block_ids)) != len(block_ids):
        raise ProtocolError("block_ids", "names a block twice")
    return KvTarget(
        transfer_id=checked_name("transfer_id", message.transfer_id),
        export=export,
        block_ids=block_ids,
        generations=tuple(Generation(value) for value in message.generations),
    )


def logprobs_to_proto(logprobs: TokenLogprobs) -> pb.TokenLogprobs:
    """The alternatives travel as two parallel lists."""
    return pb.TokenLogprobs(
        logprob=logprobs.logprob,
        top_token_ids=[token_id for token_id, _ in logprobs.top],
        top_logprobs=[logprob for _, logprob in logprobs.top],
    )


def logprobs_from_proto(message: pb.TokenLogprobs) -> TokenLogprobs:
    """Join the two lists again."""
    token_ids = checked_token_ids("top_token_ids", message.top_token_ids)
    if len(token_ids) != len(message.top_logprobs):
        raise ProtocolError(
            "top_logprobs", f"{len(message.top_logprobs)} for {len(token_ids)} token ids"
        )
    checked_count("top_token_ids", len(token_ids), most=MAX_LOGPROBS)
    values = [checked_float("top_logprobs", value) for value in message.top_logprobs]
    return TokenLogprobs(
        logprob=checked_float("logprob", message.logprob),
        top=tuple(zip(token_ids, values, strict=True)),
    )


def load_to_proto(load: WorkerLoad) -> pb.WorkerLoad:
    """How full the worker is."""
    return pb.WorkerLoad(
        num_free_blocks=load.num_free_blocks,
        num_running=load.num_running,
        num_waiting=load.num_waiting,
        num_backlog_tokens=load.num_backlog_tokens,
        is_draining=load.is_draining,
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
    )


def task_id_from_proto(value: str) -> TaskId:
    """Every command and report names its task."""
    return TaskId(checked_name("task_id", value))
