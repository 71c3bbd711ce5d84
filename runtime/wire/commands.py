"""Commands, router to worker, as they travel: both directions side by side."""

import math
from typing import assert_never

from runtime.wire.sequences import sequence_from_proto, sequence_to_proto, write_prompt
from runtime.wire.values import (
    ProtocolError,
    checked_count,
    checked_float,
    checked_name,
    checked_text,
    checked_token_ids,
    finite_or_none,
    target_fields,
    target_from_proto,
    task_id_from_proto,
)
from scheduling.block_leases import LeaseKind, LentPlace
from scheduling.messages import (
    AdmitGeneration,
    AdmitPrompt,
    CancelTask,
    Command,
    GrantGrowth,
    MakeRoom,
    PushTo,
    ResumeGeneration,
    StartDecode,
    StartPrefill,
)
from tandemserve.internal.v1 import worker_pb2 as pb

_PROTO_BY_LEASE_KIND = {
    LeaseKind.PIPELINE: pb.LEASE_KIND_PIPELINE,
    LeaseKind.EMBEDDING: pb.LEASE_KIND_EMBEDDING,
}
_LEASE_KIND_BY_PROTO = {number: kind for kind, number in _PROTO_BY_LEASE_KIND.items()}


def add_command(frame: pb.CommandFrame, command: Command) -> None:
    """Append a command to a frame.

    A message that is put into another one is encoded and parsed again for that; so a prompt, which
    may be long, is written only where it stays.
    """
    message = frame.commands.add()
    message.MergeFrom(_without_prompt(command))
    match command:
        case StartPrefill():
            write_prompt(command.sequence, message.start_prefill.sequence)
        case AdmitGeneration():
            write_prompt(command.sequence, message.admit_generation.sequence)
        case AdmitPrompt():
            write_prompt(command.sequence, message.admit_prompt.sequence)
        case _:
            pass


def _without_prompt(command: Command) -> pb.Command:
    task_id = command.task_id
    match command:
        case StartPrefill():
            prefill = pb.StartPrefill(sequence=sequence_to_proto(command.sequence))
            return pb.Command(task_id=task_id, start_prefill=prefill)
        case PushTo():
            push = pb.PushTo(**target_fields(command.target))
            return pb.Command(task_id=task_id, push_to=push)
        case AdmitGeneration():
            admission = pb.AdmitGeneration(
                sequence=sequence_to_proto(command.sequence),
                num_blocks=command.num_blocks,
                num_kv_blocks=command.num_kv_blocks,
                transfer_id=command.transfer_id,
                source_worker_id=command.source_worker_id,
                age_s=command.age_s,
            )
            return pb.Command(task_id=task_id, admit_generation=admission)
        case AdmitPrompt():
            prompt = pb.AdmitPrompt(
                sequence=sequence_to_proto(command.sequence),
                num_blocks=command.num_blocks,
                due_in_s=finite_or_none(command.due_in_s),
                age_s=command.age_s,
                place=None if command.place is None else _place_to_proto(command.place),
                is_answer_held=command.is_answer_held,
            )
            return pb.Command(task_id=task_id, admit_prompt=prompt)
        case StartDecode():
            start = pb.StartDecode(
                output_token_ids=command.output_token_ids,
                place=None if command.place is None else _place_to_proto(command.place),
            )
            return pb.Command(task_id=task_id, start_decode=start)
        case GrantGrowth():
            growth = pb.GrantGrowth(num_blocks=command.num_blocks)
            return pb.Command(task_id=task_id, grant_growth=growth)
        case ResumeGeneration():
            resume = pb.ResumeGeneration(num_blocks=command.num_blocks)
            return pb.Command(task_id=task_id, resume_generation=resume)
        case MakeRoom():
            room = pb.MakeRoom(num_blocks=command.num_blocks, due_in_s=command.due_in_s)
            return pb.Command(task_id=task_id, make_room=room)
        case CancelTask():
            return pb.Command(task_id=task_id, cancel=pb.CancelTask(reason=command.reason))
        case _:
            assert_never(command)


def command_from_proto(message: pb.Command) -> Command:
    """Inverse of `add_command`. Raises: ProtocolError."""
    task_id = task_id_from_proto(message.task_id)
    match message.WhichOneof("command"):
        case "start_prefill":
            return StartPrefill(task_id, sequence_from_proto(message.start_prefill))
        case "push_to":
            return PushTo(task_id, target_from_proto(message.push_to))
        case "admit_generation":
            admission = message.admit_generation
            num_blocks = checked_count("num_blocks", admission.num_blocks, least=1)
            return AdmitGeneration(
                task_id,
                sequence_from_proto(admission),
                num_blocks,
                checked_count("num_kv_blocks", admission.num_kv_blocks, most=num_blocks),
                checked_name("transfer_id", admission.transfer_id),
                checked_text("source_worker_id", admission.source_worker_id),
                checked_float("age_s", admission.age_s, least=0.0),
            )
        case "admit_prompt":
            prompt = message.admit_prompt
            due_in_s = math.inf
            if prompt.HasField("due_in_s"):
                due_in_s = checked_float("due_in_s", prompt.due_in_s)
            return AdmitPrompt(
                task_id,
                sequence_from_proto(prompt),
                checked_count("num_blocks", prompt.num_blocks, least=1),
                due_in_s,
                checked_float("age_s", prompt.age_s, least=0.0),
                _place_from_proto(prompt.place) if prompt.HasField("place") else None,
                prompt.is_answer_held,
            )
        case "start_decode":
            start = message.start_decode
            token_ids = checked_token_ids("output_token_ids", start.output_token_ids)
            if not token_ids:
                raise ProtocolError("start_decode.output_token_ids", "is empty")
            place = _place_from_proto(start.place) if start.HasField("place") else None
            return StartDecode(task_id, token_ids, place)
        case "grant_growth":
            num_blocks = checked_count("num_blocks", message.grant_growth.num_blocks)
            return GrantGrowth(task_id, num_blocks)
        case "resume_generation":
            num_blocks = checked_count("num_blocks", message.resume_generation.num_blocks, least=1)
            return ResumeGeneration(task_id, num_blocks)
        case "make_room":
            room = message.make_room
            num_blocks = checked_count("num_blocks", room.num_blocks, least=1)
            return MakeRoom(task_id, num_blocks, checked_float("due_in_s", room.due_in_s))
        case "cancel":
            return CancelTask(task_id, message.cancel.reason)
        case _:
            raise ProtocolError("command", "is missing or of an unknown kind")


def _place_to_proto(place: LentPlace) -> pb.LentPlace:
    return pb.LentPlace(
        host_task_id=place.host_id,
        first=place.first,
        num_blocks=place.num_blocks,
        num_response_tokens=place.num_response_tokens,
        kind=_PROTO_BY_LEASE_KIND[place.kind],
    )


def _place_from_proto(message: pb.LentPlace) -> LentPlace:
    kind = _LEASE_KIND_BY_PROTO.get(message.kind)
    if kind is None:
        raise ProtocolError("place.kind", f"{message.kind} is unknown")
    return LentPlace(
        task_id_from_proto(message.host_task_id),
        checked_count("place.first", message.first),
        checked_count("place.num_blocks", message.num_blocks, least=1),
        checked_count("place.num_response_tokens", message.num_response_tokens, least=1),
        kind,
    )
