"""Reports, worker to router, as they travel: both directions side by side."""

from typing import assert_never

from runtime.wire.sequences import (
    logprobs_from_proto,
    logprobs_to_proto,
    prompt_logprobs_from_proto,
    prompt_logprobs_to_proto,
)
from runtime.wire.values import (
    MAX_INT32,
    MAX_NAME_CHARS,
    ProtocolError,
    checked_count,
    checked_float,
    checked_name,
    checked_token_ids,
    target_fields,
    target_from_proto,
    task_id_from_proto,
)
from scheduling.block_leases import BlocksInherited
from scheduling.ids import TaskId
from scheduling.messages import (
    BlocksGranted,
    BlocksRefused,
    DecodeStarted,
    GrowthNeeded,
    KvPushed,
    Preempted,
    PrefillStarted,
    PromptScored,
    RoomMade,
    SwappedOut,
    TaskFailed,
    TaskReleased,
    TokensEmitted,
)
from scheduling.sampling import TokenLogprobs
from tandemserve.internal.v1 import worker_pb2 as pb

_FINISH_REASONS = {"": None, "stop": "stop", "length": "length"}
# Every report that is no TokensEmitted.
StateReport = (
    PrefillStarted
    | PromptScored
    | KvPushed
    | BlocksGranted
    | BlocksRefused
    | BlocksInherited
    | DecodeStarted
    | GrowthNeeded
    | Preempted
    | SwappedOut
    | RoomMade
    | TaskFailed
    | TaskReleased
)


def write_tokens(report: TokensEmitted, message: pb.TokenReport) -> None:
    """Fill a message that is part of its frame already: it runs for each sequence and iteration.

    Building the message first and appending it would copy it. Unset fields cost nothing.
    """
    message.task_id = report.task_id
    message.first_token_index = report.first_token_index
    message.token_ids.extend(report.token_ids)
    message.text = report.text
    if report.logprobs:
        message.logprobs.extend(map(logprobs_to_proto, report.logprobs))
    if report.finish_reason is not None:
        message.finish_reason = report.finish_reason
        if isinstance(report.matched_stop, str):
            message.matched_string = report.matched_stop
        elif report.matched_stop is not None:
            message.matched_token_id = report.matched_stop


def tokens_from_proto(message: pb.TokenReport) -> TokensEmitted:
    """Inverse of `write_tokens`. Raises: ProtocolError.

    It runs for every token, and every look at a message costs: the plain case comes first.
    """
    task_id, index, token_ids = message.task_id, message.first_token_index, message.token_ids
    if (
        len(token_ids) == 1
        and not message.finish_reason
        and not message.logprobs
        and not message.HasField("matched_token_id")
        and token_ids[0] <= MAX_INT32
        and index <= MAX_INT32
        and 0 < len(task_id) <= MAX_NAME_CHARS
    ):
        return TokensEmitted(TaskId(task_id), index, (token_ids[0],), message.text)
    if message.finish_reason not in _FINISH_REASONS:
        raise ProtocolError("finish_reason", f"{message.finish_reason!r} is unknown")
    logprobs: tuple[TokenLogprobs, ...] = ()
    if message.logprobs:
        logprobs = tuple(map(logprobs_from_proto, message.logprobs))
    if logprobs and len(logprobs) != len(message.token_ids):
        raise ProtocolError(
            "logprobs", f"{len(logprobs)} for {len(message.token_ids)} output tokens"
        )
    matched_stop: str | int | None = None
    if message.HasField("matched_string"):
        matched_stop = message.matched_string
        if message.HasField("matched_token_id"):
            raise ProtocolError("matched_token_id", "is set beside matched_string")
    elif message.HasField("matched_token_id"):
        matched_stop = message.matched_token_id
    return TokensEmitted(
        task_id=task_id_from_proto(message.task_id),
        first_token_index=checked_count("first_token_index", message.first_token_index),
        token_ids=checked_token_ids("token_ids", message.token_ids),
        text=message.text,
        logprobs=logprobs,
        finish_reason=_FINISH_REASONS[message.finish_reason],
        matched_stop=matched_stop,
    )


def report_to_proto(report: StateReport) -> pb.Report:
    """One report that is no TokensEmitted, as it travels."""
    task_id = report.task_id
    match report:
        case PrefillStarted():
            prefill = pb.PrefillStarted(num_cached_tokens=report.num_cached_tokens)
            return pb.Report(task_id=task_id, prefill_started=prefill)
        case PromptScored():
            scored = prompt_logprobs_to_proto(report.logprobs)
            return pb.Report(task_id=task_id, prompt_logprobs=scored)
        case KvPushed():
            pushed = pb.KvPushed(
                num_blocks=report.num_blocks,
                num_bytes=report.num_bytes,
                copy_s=report.copy_s,
                transport=report.transport,
            )
            return pb.Report(task_id=task_id, kv_pushed=pushed)
        case BlocksGranted():
            granted = pb.BlocksGranted(**target_fields(report.target))
            return pb.Report(task_id=task_id, blocks_granted=granted)
        case BlocksRefused():
            refused = pb.BlocksRefused(num_free_blocks=report.num_free_blocks)
            return pb.Report(task_id=task_id, blocks_refused=refused)
        case BlocksInherited():
            inherited = pb.BlocksInherited(num_blocks=report.num_blocks)
            return pb.Report(task_id=task_id, blocks_inherited=inherited)
        case DecodeStarted():
            started = pb.DecodeStarted(transport=report.transport)
            return pb.Report(task_id=task_id, decode_started=started)
        case GrowthNeeded():
            growth = pb.GrowthNeeded(num_blocks=report.num_blocks)
            return pb.Report(task_id=task_id, growth_needed=growth)
        case Preempted():
            preempted = pb.Preempted(keeps_kv=report.keeps_kv)
            return pb.Report(task_id=task_id, preempted=preempted)
        case SwappedOut():
            swapped = pb.SwappedOut(num_blocks=report.num_blocks)
            return pb.Report(task_id=task_id, swapped_out=swapped)
        case RoomMade():
            made = pb.RoomMade(num_blocks=report.num_blocks)
            return pb.Report(task_id=task_id, room_made=made)
        case TaskFailed():
            failed = pb.TaskFailed(code=report.code, message=report.message)
            return pb.Report(task_id=task_id, failed=failed)
        case TaskReleased():
            return pb.Report(task_id=task_id, released=pb.TaskReleased())
        case _:
            assert_never(report)


def report_from_proto(message: pb.Report) -> StateReport:
    """Inverse of `report_to_proto`. Raises: ProtocolError."""
    task_id = task_id_from_proto(message.task_id)
    match message.WhichOneof("report"):
        case "prefill_started":
            num_cached_tokens = message.prefill_started.num_cached_tokens
            return PrefillStarted(task_id, checked_count("num_cached_tokens", num_cached_tokens))
        case "prompt_logprobs":
            return PromptScored(task_id, prompt_logprobs_from_proto(message.prompt_logprobs))
        case "kv_pushed":
            pushed = message.kv_pushed
            return KvPushed(
                task_id,
                num_blocks=checked_count("num_blocks", pushed.num_blocks),
                num_bytes=checked_count("num_bytes", pushed.num_bytes, most=2**63 - 1),
                copy_s=checked_float("copy_s", pushed.copy_s, least=0.0),
                transport=pushed.transport,
            )
        case "blocks_granted":
            return BlocksGranted(task_id, target_from_proto(message.blocks_granted))
        case "blocks_refused":
            num_free_blocks = message.blocks_refused.num_free_blocks
            return BlocksRefused(task_id, checked_count("num_free_blocks", num_free_blocks))
        case "blocks_inherited":
            num_blocks = checked_count("num_blocks", message.blocks_inherited.num_blocks, least=1)
            return BlocksInherited(task_id, num_blocks)
        case "decode_started":
            return DecodeStarted(task_id, message.decode_started.transport)
        case "growth_needed":
            num_blocks = checked_count("num_blocks", message.growth_needed.num_blocks, least=1)
            return GrowthNeeded(task_id, num_blocks)
        case "preempted":
            return Preempted(task_id, message.preempted.keeps_kv)
        case "swapped_out":
            num_blocks = checked_count("num_blocks", message.swapped_out.num_blocks)
            return SwappedOut(task_id, num_blocks)
        case "room_made":
            num_blocks = checked_count("num_blocks", message.room_made.num_blocks)
            return RoomMade(task_id, num_blocks)
        case "failed":
            code = checked_name("failed.code", message.failed.code)
            return TaskFailed(task_id, code, message.failed.message)
        case "released":
            return TaskReleased(task_id)
        case _:
            raise ProtocolError("report", "is missing or of an unknown kind")
