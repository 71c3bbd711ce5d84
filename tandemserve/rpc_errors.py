"""A failed gRPC call, as an exception of `tandemserve.errors`.

Servers attach google.rpc.ErrorInfo (domain "tandemserve", reason = code, metadata
"gpu_work_spent") and RetryInfo. Without them the gRPC status alone decides, because proxies and
gRPC itself answer too. This module never retries; `retry.py` does.
"""

import logging
from collections.abc import Iterable
from typing import Protocol

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from tandemserve import errors

ERROR_DOMAIN = "tandemserve"
_DETAILS_KEY = "grpc-status-details-bin"
_CLASS_BY_CODE = errors.error_class_by_code()
_log = logging.getLogger(__name__)

_CLASS_BY_STATUS: dict[grpc.StatusCode, type[errors.TandemError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: errors.InvalidRequest,
    grpc.StatusCode.NOT_FOUND: errors.InvalidRequest,
    grpc.StatusCode.ALREADY_EXISTS: errors.DuplicateRequest,
    grpc.StatusCode.FAILED_PRECONDITION: errors.CanNeverFit,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.LimitExceeded,
    grpc.StatusCode.UNAVAILABLE: errors.ConnectionFailed,
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    # Without details it was no operator's doing: a server or proxy let go of the call.
    grpc.StatusCode.CANCELLED: errors.ConnectionFailed,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    grpc.StatusCode.UNIMPLEMENTED: errors.NotSupported,
    grpc.StatusCode.DATA_LOSS: errors.KvCorrupted,
}

_ADVICE: dict[type[errors.TandemError], str] = {
    errors.ConnectionFailed: "check the address, and that the router runs (`tandem up`)",
    errors.DeadlineExceeded: "raise timeout_s, or ask for fewer tokens",
    errors.Unauthenticated: "pass a valid token",
    errors.PermissionDenied: "ask the operator for the permission",
    errors.LimitExceeded: "send less at once, or ask the operator for a higher limit",
    errors.NotSupported: "check that the target is a Tandem router of this version",
    errors.InternalFailure: "try again, and look at the router's log",
}


# They come where the deadline passes here first.
_GRPC_WORDS_FOR_A_DEADLINE = ("Deadline Exceeded", "Stream removed (Deadline Exceeded)")


class RpcFailure(Protocol):
    """What the synchronous and the asyncio error of gRPC have in common."""

    def code(self) -> grpc.StatusCode: ...

    def details(self) -> str | None: ...

    def trailing_metadata(self) -> Iterable[tuple[str, str | bytes]] | None: ...


def error_from_rpc(
    failure: RpcFailure, *, target: str, request_id: str | None = None
) -> errors.TandemError:
    """The exception for a failed call, from its details or else from its status."""
    info, retry_after_s, told = _details_of(failure)
    by_status = _CLASS_BY_STATUS.get(failure.code(), errors.InternalFailure)
    text = " ".join((failure.details() or "").split())
    if info is not None:
        # Where the deadline passes on both sides at once, gRPC puts its own words in front of
        # the server's details, which hold the server's message as well.
        text = " ".join(told.split()) or text
        # A code of a later version: the status still says what kind of failure it is.
        error_class = _CLASS_BY_CODE.get(info.reason, by_status)
        message = text or info.reason
    else:
        error_class = by_status
        message = _message_without_details(error_class, failure.code(), text, target)
    return error_class(
        message,
        retry_after_s=retry_after_s,
        gpu_work_spent=_gpu_work_spent(info),
        request_id=request_id,
    )


def _message_without_details(
    error_class: type[errors.TandemError], status: grpc.StatusCode, text: str, target: str
) -> str:
    if text in _GRPC_WORDS_FOR_A_DEADLINE:
        text = "no complete answer in time"
    subject = f"{target}: {text or status.name}"
    advice = _ADVICE.get(error_class)
    return f"{subject}; {advice}" if advice else subject


def _details_of(
    failure: RpcFailure,
) -> tuple[error_details_pb2.ErrorInfo | None, float | None, str]:
    """What kind of failure it is, when to try again, and the message that came with both."""
    info: error_details_pb2.ErrorInfo | None = None
    retry_after_s: float | None = None
    told = ""
    try:
        status = _rich_status(failure)
        told = status.message
        for detail in status.details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                candidate = error_details_pb2.ErrorInfo()
                detail.Unpack(candidate)
                if candidate.domain == ERROR_DOMAIN:
                    info = candidate
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                retry = error_details_pb2.RetryInfo()
                detail.Unpack(retry)
                retry_after_s = max(0.0, retry.retry_delay.ToNanoseconds() / 1e9)
    except DecodeError:
        _log.warning("unreadable error details; the gRPC status decides")
    return info, retry_after_s, told


def _rich_status(failure: RpcFailure) -> status_pb2.Status:
    """Empty where none came along. Raises: DecodeError."""
    for key, value in failure.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            return status_pb2.Status.FromString(value)
    return status_pb2.Status()


def _gpu_work_spent(info: error_details_pb2.ErrorInfo | None) -> bool | None:
    spent = info.metadata.get("gpu_work_spent") if info is not None else None
    return None if spent is None else spent == "true"
