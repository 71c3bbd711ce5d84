"""The one table from a domain error to what a caller sees: status, reason, when to try again."""

import secrets
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import (  # type: ignore[import-untyped] # the package ships no stubs
    error_details_pb2,
    status_pb2,
)

from runtime.logging import get_logger
from scheduling.errors import InvalidRequest, TandemError

ERROR_DOMAIN = "tandemserve"
DETAILS_KEY = "grpc-status-details-bin"
# A status travels in headers, which peers limit to a few kilobytes.
_MAX_MESSAGE_CHARS = 1000
# Errors that led to one another; a chain may be a circle.
_MAX_CHAIN = 16


@dataclass(frozen=True, slots=True)
class StatusRule:
    """How one code is reported."""

    status: grpc.StatusCode
    # Told to the caller where the error itself names no time; None: do not promise anything.
    retry_after_s: float | None = None


STATUS_BY_CODE: dict[str, StatusRule] = {
    "invalid_request": StatusRule(grpc.StatusCode.INVALID_ARGUMENT),
    "unknown_model": StatusRule(grpc.StatusCode.NOT_FOUND),
    "unknown_name": StatusRule(grpc.StatusCode.NOT_FOUND),
    "context_too_long": StatusRule(grpc.StatusCode.INVALID_ARGUMENT),
    "duplicate_request": StatusRule(grpc.StatusCode.ALREADY_EXISTS),
    "can_never_fit": StatusRule(grpc.StatusCode.FAILED_PRECONDITION),
    "queue_full": StatusRule(grpc.StatusCode.RESOURCE_EXHAUSTED, retry_after_s=1.0),
    "no_worker_available": StatusRule(grpc.StatusCode.UNAVAILABLE, retry_after_s=1.0),
    "last_worker": StatusRule(grpc.StatusCode.FAILED_PRECONDITION),
    "deadline_exceeded": StatusRule(grpc.StatusCode.DEADLINE_EXCEEDED),
    "cancelled": StatusRule(grpc.StatusCode.CANCELLED),
    "reader_too_slow": StatusRule(grpc.StatusCode.RESOURCE_EXHAUSTED),
    "beginning_forgotten": StatusRule(grpc.StatusCode.OUT_OF_RANGE),
    "worker_failed": StatusRule(grpc.StatusCode.UNAVAILABLE, retry_after_s=1.0),
    "kv_corrupted": StatusRule(grpc.StatusCode.DATA_LOSS, retry_after_s=1.0),
    "stale_incarnation": StatusRule(grpc.StatusCode.ABORTED, retry_after_s=0.5),
    "state_unavailable": StatusRule(grpc.StatusCode.UNAVAILABLE, retry_after_s=1.0),
    "internal": StatusRule(grpc.StatusCode.INTERNAL),
}


class MalformedMessage(InvalidRequest):
    """The bytes of a call are no message of its method; told in the log when the call ends."""

    def __init__(self, method: str) -> None:
        problem = f"is no message of {method}; use a client of this API"
        super().__init__("request", problem)
        self.method = method


async def abort_with(
    context: grpc.aio.ServicerContext[Any, Any],
    error: Exception,
    *,
    gpu_work_spent: bool = False,
) -> NoReturn:
    """End the call with the status of the error; one that is not ours shows an incident id only.

    Raises: always, what `context.abort` raises.
    """
    status = status_of(error, gpu_work_spent=gpu_work_spent)
    if isinstance(error, MalformedMessage):
        get_logger().warning("malformed_message", method=error.method, peer=context.peer())
    _forget_frames(error)
    code = STATUS_BY_CODE[_code_of(error)].status
    await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))


def status_of(error: Exception, *, gpu_work_spent: bool = False) -> status_pb2.Status:
    """The rich status: ErrorInfo always, RetryInfo where a retry can help.

    An error that is not ours is logged here, and only here, under the incident id it is given.
    """
    code = _code_of(error)
    rule = STATUS_BY_CODE[code]
    metadata = {"gpu_work_spent": str(gpu_work_spent).lower()}
    retry_after_s = rule.retry_after_s
    if isinstance(error, TandemError) and code != "internal":
        message = error.message
        retry_after_s = error.retry_after_s if error.retry_after_s is not None else retry_after_s
        if isinstance(error, InvalidRequest):
            metadata["field"] = error.field
    else:
        incident = secrets.token_hex(4)
        metadata["incident"] = incident
        message = f"internal error; give incident {incident} to the operator of this service"
        get_logger().error("internal_error", incident=incident, exc_info=error)
    info = error_details_pb2.ErrorInfo(reason=code, domain=ERROR_DOMAIN, metadata=metadata)
    details = [_pack(info)]
    if retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(retry_after_s * 1e9))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    number: int = rule.status.value[0]
    return status_pb2.Status(code=number, message=message[:_MAX_MESSAGE_CHARS], details=details)


def _forget_frames(error: BaseException | None) -> None:
    """gRPC keeps what ended a call, and that keeps `error`: its frames would keep the prompt."""
    for _ in range(_MAX_CHAIN):
        if error is None:
            return
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def _code_of(error: Exception) -> str:
    code = error.code if isinstance(error, TandemError) else "internal"
    return code if code in STATUS_BY_CODE else "internal"


def _pack(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
