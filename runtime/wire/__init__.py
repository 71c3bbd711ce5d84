"""Frames between router and worker: protobuf <-> the dataclasses of scheduling/messages.py.

A frame holds whatever is ready; the order of the messages of one task is kept. What a peer sent
is checked here, once; past this package it is trusted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from runtime.wire.commands import add_command, command_from_proto
from runtime.wire.prefixes import in_parts, prefixes_from_proto, prefixes_to_proto
from runtime.wire.reports import (
    report_from_proto,
    report_to_proto,
    tokens_from_proto,
    write_tokens,
)
from runtime.wire.values import (
    MAX_RANKS,
    MAX_START_S,
    MAX_TRAITS,
    ProtocolError,
    admission_from_proto,
    admission_to_proto,
    checked_count,
    checked_float,
    checked_name,
    checked_text,
    export_from_proto,
    export_to_proto,
    load_from_proto,
    load_to_proto,
    write_pass_time_error,
)
from scheduling.ids import Incarnation, RouterId, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    Command,
    Report,
    SetAdmission,
    TokensEmitted,
    WorkerHello,
    WorkerLoad,
)
from scheduling.policy import growth_reserve_blocks
from scheduling.prefix_index import PrefixChanges
from tandemserve.internal.v1 import worker_pb2 as pb

__all__ = [
    "Heartbeat",
    "HeartbeatAnswer",
    "ProtocolError",
    "ReportBatch",
    "RouterHello",
    "decode_request",
    "decode_response",
    "encode_admission",
    "encode_commands",
    "encode_heartbeat",
    "encode_heartbeat_answer",
    "encode_peer",
    "encode_reports",
    "encode_router_hello",
    "encode_worker_hello",
]

_ROLES = ("prefill", "decode", "mixed")


@dataclass(frozen=True, slots=True)
class RouterHello:
    """Who opens a session, and which life of the worker it means to reach."""

    protocol_version: int
    router_id: RouterId
    router_incarnation: Incarnation
    worker_incarnation: Incarnation
    # Grows with every session that this life of the router opens to the worker.
    session_number: int = 0
    # How long the router may be silent before the worker gives the session up; 0: for ever.
    heartbeat_timeout_s: float = 0.0
    # Reports may come before the tokens of their frame as well.
    reads_openings: bool = False


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The router asks for a sign of life."""

    number: int


@dataclass(frozen=True, slots=True)
class HeartbeatAnswer:
    """The worker's event loop runs; what it knows of its engine."""

    number: int
    # Turns of the engine's loop that have ended.
    num_turns: int
    # How long the present turn has taken; 0 while the engine waits for work.
    turn_s: float


@dataclass(frozen=True, slots=True)
class ReportBatch:
    """One frame of a worker."""

    reports: tuple[Report, ...]
    load: WorkerLoad
    # What has changed of the prefixes that the worker keeps.
    prefixes: PrefixChanges | None = None


def encode_commands(commands: Sequence[Command]) -> pb.SessionRequest:
    """One frame with all commands that are ready."""
    request = pb.SessionRequest(commands=pb.CommandFrame())
    for command in commands:
        add_command(request.commands, command)
    return request


def encode_heartbeat(heartbeat: Heartbeat) -> pb.SessionRequest:
    """The router's question."""
    return pb.SessionRequest(heartbeat=pb.Heartbeat(number=heartbeat.number))


def encode_heartbeat_answer(answer: HeartbeatAnswer) -> pb.SessionResponse:
    """The worker's answer."""
    return pb.SessionResponse(
        heartbeat=pb.HeartbeatAnswer(
            number=answer.number, num_turns=answer.num_turns, turn_s=answer.turn_s
        )
    )


def encode_peer(export: KvExport) -> pb.SessionRequest:
    """A pool that the worker will push into."""
    return pb.SessionRequest(peer=export_to_proto(export))


def encode_admission(wish: SetAdmission) -> pb.SessionRequest:
    """What an operator lets the worker take on."""
    return pb.SessionRequest(
        set_admission=pb.SetAdmission(admission=admission_to_proto(wish.admission))
    )


def decode_request(
    message: pb.SessionRequest,
) -> RouterHello | KvExport | SetAdmission | Heartbeat | tuple[Command, ...]:
    """What a worker reads. Raises: ProtocolError."""
    match message.WhichOneof("frame"):
        case "hello":
            return _router_hello_from_proto(message.hello)
        case "peer":
            return export_from_proto(message.peer)
        case "set_admission":
            return SetAdmission(admission_from_proto(message.set_admission.admission))
        case "heartbeat":
            return Heartbeat(message.heartbeat.number)
        case "commands":
            return tuple(command_from_proto(command) for command in message.commands.commands)
        case _:
            raise ProtocolError("frame", "is missing or of an unknown kind")


def encode_reports(
    reports: Sequence[Report],
    load: WorkerLoad,
    prefixes: PrefixChanges | None = None,
    *,
    has_openings: bool = False,
    tells_pass_times: bool = True,
) -> list[pb.SessionResponse]:
    """As few frames as keep the order of each task's reports: nearly always one.

    Inside a frame tokens come before all other reports, so tokens that follow another report of
    the same task go into the next frame, with those of all tasks that are so far, unless the router
    reads openings. Each frame carries the load; without reports, one does.
    """
    responses = [pb.SessionResponse()]
    # The frame of the task's last report, and the first one that its next tokens may go into.
    # Where a task is in neither, it is the first frame.
    last_by_task: dict[TaskId, int] = {}
    next_by_task: dict[TaskId, int] = {}
    openings = set(_openings(reports)) if has_openings else ()
    for position, report in enumerate(reports):
        if isinstance(report, TokensEmitted):
            number = next_by_task.get(report.task_id, 0)
            if number == len(responses):
                responses.append(pb.SessionResponse())
            if number:
                last_by_task[report.task_id] = number
            write_tokens(report, responses[number].reports.tokens.add())
        elif position in openings:
            responses[0].reports.openings.append(report_to_proto(report))
        else:
            number = last_by_task.get(report.task_id, 0)
            next_by_task[report.task_id] = number + 1
            responses[number].reports.reports.append(report_to_proto(report))
    load_message = load_to_proto(load)
    if tells_pass_times:
        write_pass_time_error(load, load_message)
    for response in responses:
        response.reports.load.CopyFrom(load_message)
    if prefixes is not None:
        # A part too many for one frame gets one of its own.
        for number, part in enumerate(in_parts(prefixes)):
            if number == len(responses):
                responses.append(pb.SessionResponse())
                responses[-1].reports.load.CopyFrom(load_message)
            responses[number].reports.prefixes.CopyFrom(prefixes_to_proto(part))
    return responses


def _openings(reports: Sequence[Report]) -> Iterator[int]:
    """Positions of what is said of a task before its first tokens, where there are any."""
    if all(isinstance(report, TokensEmitted) for report in reports):
        return  # as in nearly all iterations
    is_emitting: set[TaskId] = set()
    before: dict[TaskId, list[int]] = {}
    for position, report in enumerate(reports):
        if not isinstance(report, TokensEmitted):
            if report.task_id not in is_emitting:
                before.setdefault(report.task_id, []).append(position)
        elif report.task_id not in is_emitting:
            is_emitting.add(report.task_id)
            yield from before.pop(report.task_id, ())


def decode_response(
    message: pb.SessionResponse,
) -> WorkerHello | ReportBatch | HeartbeatAnswer:
    """What a router reads. Raises: ProtocolError."""
    match message.WhichOneof("frame"):
        case "hello":
            return _worker_hello_from_proto(message.hello)
        case "heartbeat":
            answer = message.heartbeat
            turn_s = checked_float("heartbeat.turn_s", answer.turn_s, least=0.0)
            return HeartbeatAnswer(answer.number, answer.num_turns, turn_s)
        case "reports":
            frame = message.reports
            if not frame.HasField("load"):
                raise ProtocolError("load", "is missing")
            tokens = [tokens_from_proto(report) for report in frame.tokens]
            states = [report_from_proto(report) for report in frame.reports]
            openings = [report_from_proto(report) for report in frame.openings]
            prefixes = None
            if frame.HasField("prefixes"):
                prefixes = prefixes_from_proto(frame.prefixes)
            return ReportBatch((*openings, *tokens, *states), load_from_proto(frame.load), prefixes)
        case _:
            raise ProtocolError("frame", "is missing or of an unknown kind")


def encode_router_hello(hello: RouterHello) -> pb.SessionRequest:
    """The first frame of a router."""
    return pb.SessionRequest(
        hello=pb.RouterHello(
            protocol_version=hello.protocol_version,
            router_id=hello.router_id,
            router_incarnation=hello.router_incarnation,
            worker_incarnation=hello.worker_incarnation,
            session_number=hello.session_number,
            heartbeat_timeout_s=hello.heartbeat_timeout_s,
            reads_openings=hello.reads_openings,
        )
    )


def _router_hello_from_proto(message: pb.RouterHello) -> RouterHello:
    return RouterHello(
        protocol_version=message.protocol_version,
        router_id=RouterId(checked_name("router_id", message.router_id)),
        router_incarnation=Incarnation(message.router_incarnation),
        worker_incarnation=Incarnation(message.worker_incarnation),
        session_number=message.session_number,
        heartbeat_timeout_s=checked_float(
            "heartbeat_timeout_s", message.heartbeat_timeout_s, least=0.0
        ),
        reads_openings=message.reads_openings,
    )


def encode_worker_hello(hello: WorkerHello) -> pb.SessionResponse:
    """The first frame of a worker."""
    return pb.SessionResponse(
        hello=pb.WorkerHello(
            protocol_version=hello.protocol_version,
            worker_id=hello.worker_id,
            incarnation=hello.incarnation,
            role=hello.role,
            num_blocks=hello.num_blocks,
            block_size=hello.block_size,
            max_num_seqs=hello.max_num_seqs,
            compatibility=hello.compatibility,
            model_fingerprint=hello.model_fingerprint,
            export=None if hello.export is None else export_to_proto(hello.export),
            admission=admission_to_proto(hello.admission),
            max_message_bytes=hello.max_message_bytes,
            num_growth_blocks=hello.num_growth_blocks,
            max_task_blocks=hello.max_task_blocks,
            max_num_batched_tokens=hello.max_num_batched_tokens,
            policy=hello.policy,
            makes_room=hello.makes_room,
            num_ranks=hello.num_ranks,
            start_s=hello.start_s,
            traits=hello.traits,
        )
    )


def _worker_hello_from_proto(message: pb.WorkerHello) -> WorkerHello:
    if message.role not in _ROLES:
        raise ProtocolError("role", f"must be one of {', '.join(_ROLES)}, is {message.role!r}")
    return WorkerHello(
        protocol_version=message.protocol_version,
        worker_id=WorkerId(checked_name("worker_id", message.worker_id)),
        incarnation=Incarnation(message.incarnation),
        role=message.role,
        num_blocks=checked_count("num_blocks", message.num_blocks, least=1),
        block_size=checked_count("block_size", message.block_size, least=1),
        max_num_seqs=checked_count("max_num_seqs", message.max_num_seqs, least=1),
        compatibility=message.compatibility,
        model_fingerprint=message.model_fingerprint,
        export=export_from_proto(message.export) if message.HasField("export") else None,
        admission=admission_from_proto(message.admission),
        max_message_bytes=message.max_message_bytes,
        num_growth_blocks=_num_growth_blocks(message),
        max_task_blocks=checked_count(
            "max_task_blocks", message.max_task_blocks, most=message.num_blocks
        ),
        max_num_batched_tokens=checked_count(
            "max_num_batched_tokens", message.max_num_batched_tokens
        ),
        policy=_policy(message.policy),
        makes_room=message.makes_room,
        num_ranks=checked_count("num_ranks", message.num_ranks or 1, most=MAX_RANKS),
        start_s=checked_float("start_s", message.start_s, least=0.0, most=MAX_START_S),
        traits=_traits(message.traits),
    )


def _traits(traits: Sequence[str]) -> tuple[str, ...]:
    """They go into errors that callers see."""
    if len(traits) > MAX_TRAITS:
        raise ProtocolError("traits", f"are {len(traits)}, not {MAX_TRAITS} at most")
    if not all(trait.isascii() and trait.isprintable() for trait in traits):
        # Others take up to twelve times the room where errors travel.
        raise ProtocolError("traits", "must be printable ASCII")
    return tuple(checked_name("traits", trait) for trait in traits)


def _policy(name: str) -> str:
    """It goes into log lines and on operators' screens."""
    if name and not name.isprintable():
        raise ProtocolError("policy", "must be printable")
    return checked_text("policy", name)


def _num_growth_blocks(message: pb.WorkerHello) -> int:
    if message.HasField("num_growth_blocks"):
        number = message.num_growth_blocks
        return checked_count("num_growth_blocks", number, most=message.num_blocks)
    return growth_reserve_blocks(message.num_blocks) if message.role != "prefill" else 0
