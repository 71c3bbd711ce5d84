"""Every call with one answer: where it goes, what it sends, and how its answer is read.

Both clients perform these values, so a call is described once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import Message

from tandemserve import wire
from tandemserve.admin_results import (
    AnswerView,
    CancelOutcome,
    ClusterStatus,
    Holding,
    LengthCalibration,
    QueuedTask,
    Queues,
    RequestFilter,
    RequestHistory,
    RequestList,
    RequestView,
    Reservations,
    Timeline,
    TimelineEvent,
    WorkerReservations,
    WorkerView,
)
from tandemserve.api.v1 import admin_pb2, inference_pb2
from tandemserve.results import ModelInfo

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Query(Generic[T]):
    """One unary call."""

    path: str
    request: Message
    response_class: type[Message]
    # Its argument is an instance of response_class.
    parse: Callable[[Any], T]


def method_path(file: FileDescriptor, service: str, method: str) -> str:
    """The HTTP/2 path of a method. Raises: KeyError when the contract has no such method."""
    found = file.services_by_name[service]
    return f"/{found.full_name}/{found.methods_by_name[method].name}"


def _inference(method: str) -> str:
    return method_path(inference_pb2.DESCRIPTOR, "InferenceService", method)


def _admin(method: str) -> str:
    return method_path(admin_pb2.DESCRIPTOR, "AdminService", method)


GENERATE_PATH = _inference("Generate")


def list_models() -> Query[tuple[str, ...]]:
    return Query(
        _inference("ListModels"),
        inference_pb2.ListModelsRequest(),
        inference_pb2.ListModelsResponse,
        lambda response: tuple(response.models),
    )


def model_info(model: str) -> Query[ModelInfo]:
    return Query(
        _inference("GetModelInfo"),
        inference_pb2.GetModelInfoRequest(model=model),
        inference_pb2.GetModelInfoResponse,
        wire.model_info,
    )


def tokenize(prompt: str | wire.Messages, model: str) -> Query[tuple[int, ...]]:
    request = inference_pb2.TokenizeRequest(model=model)
    if isinstance(prompt, str):
        request.text = wire.text_prompt(prompt)
    else:
        request.chat.CopyFrom(wire.chat_prompt(prompt))
    return Query(
        _inference("Tokenize"),
        request,
        inference_pb2.TokenizeResponse,
        lambda response: tuple(response.token_ids),
    )


def status() -> Query[ClusterStatus]:
    return Query(
        _admin("GetStatus"),
        admin_pb2.GetStatusRequest(),
        admin_pb2.GetStatusResponse,
        lambda response: wire.mirrored(
            ClusterStatus,
            response,
            length_calibration=_all_mirrored(LengthCalibration, response.length_calibration),
        ),
    )


def workers() -> Query[tuple[WorkerView, ...]]:
    return Query(
        _admin("ListWorkers"),
        admin_pb2.ListWorkersRequest(),
        admin_pb2.ListWorkersResponse,
        lambda response: _all_mirrored(WorkerView, response.workers),
    )


def queues(max_tasks: int) -> Query[Queues]:
    return Query(
        _admin("ListQueues"),
        admin_pb2.ListQueuesRequest(max_tasks=max_tasks),
        admin_pb2.ListQueuesResponse,
        lambda response: wire.mirrored(
            Queues,
            response,
            prompt_tasks=_all_mirrored(QueuedTask, response.prompt_tasks),
            generation_tasks=_all_mirrored(QueuedTask, response.generation_tasks),
            stranded_tasks=_all_mirrored(QueuedTask, response.stranded_tasks),
        ),
    )


def reservations(max_holdings: int) -> Query[Reservations]:
    return Query(
        _admin("ListReservations"),
        admin_pb2.ListReservationsRequest(max_holdings=max_holdings),
        admin_pb2.ListReservationsResponse,
        lambda response: wire.mirrored(
            Reservations,
            response,
            workers=_all_mirrored(WorkerReservations, response.workers),
            holdings=_all_mirrored(Holding, response.holdings),
        ),
    )


def requests(wanted: RequestFilter, max_requests: int) -> Query[RequestList]:
    return Query(
        _admin("ListRequests"),
        admin_pb2.ListRequestsRequest(
            max_requests=max_requests,
            state=wanted.state,
            tenant=wanted.tenant,
            request_class=wanted.request_class,
            phase=wanted.phase,
            worker_id=wanted.worker_id,
        ),
        admin_pb2.ListRequestsResponse,
        lambda response: wire.mirrored(
            RequestList, response, requests=tuple(map(_request_view, response.requests))
        ),
    )


def request(request_id: str) -> Query[RequestHistory]:
    return Query(
        _admin("GetRequest"),
        admin_pb2.GetRequestRequest(request_id=request_id),
        admin_pb2.GetRequestResponse,
        lambda response: RequestHistory(
            _request_view(response.request), tuple(map(_timeline, response.timelines))
        ),
    )


def cancel(
    request_ids: Sequence[str], operator: str, reason: str
) -> Query[tuple[CancelOutcome, ...]]:
    return Query(
        _admin("CancelRequests"),
        admin_pb2.CancelRequestsRequest(request_ids=request_ids, operator=operator, reason=reason),
        admin_pb2.CancelRequestsResponse,
        lambda response: _all_mirrored(CancelOutcome, response.outcomes),
    )


def set_admission(worker_id: str, admission: str, force: bool) -> Query[WorkerView]:
    return Query(
        _admin("SetWorkerAdmission"),
        admin_pb2.SetWorkerAdmissionRequest(worker_id=worker_id, admission=admission, force=force),
        admin_pb2.SetWorkerAdmissionResponse,
        lambda response: wire.mirrored(WorkerView, response.worker),
    )


def _request_view(message: admin_pb2.RequestView) -> RequestView:
    return wire.mirrored(
        RequestView,
        message,
        ended_ago_s=_optional(message, "ended_ago_s"),
        time_to_deadline_s=_optional(message, "time_to_deadline_s"),
        answers=_all_mirrored(AnswerView, message.answers),
    )


def _timeline(message: admin_pb2.Timeline) -> Timeline:
    return wire.mirrored(Timeline, message, events=tuple(map(_timeline_event, message.events)))


def _timeline_event(message: admin_pb2.TimelineEvent) -> TimelineEvent:
    started_at_s = _optional(message, "started_at_s")
    return wire.mirrored(TimelineEvent, message, started_at_s=started_at_s)


def _optional(message: Message, field: str) -> object:
    return getattr(message, field) if message.HasField(field) else None


def _all_mirrored(result_class: Any, messages: Any) -> tuple[Any, ...]:
    return tuple(wire.mirrored(result_class, message) for message in messages)
