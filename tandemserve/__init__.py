"""Tandem's client: `Client`, `AsyncClient`, their results and their errors.

    from tandemserve import Client

    with Client("127.0.0.1:7700") as client:
        for event in client.stream("Once upon a time"):
            ...

What needs gRPC is imported when first used: `tandem version` and `--help` must not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

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
from tandemserve.errors import (
    BeginningForgotten,
    CanNeverFit,
    ClientClosed,
    ClientError,
    ConnectionFailed,
    ContextTooLong,
    DeadlineExceeded,
    DuplicateRequest,
    InternalFailure,
    InvalidRequest,
    KvCorrupted,
    LastWorker,
    LimitExceeded,
    NotSupported,
    NoWorkerAvailable,
    PermissionDenied,
    ProtocolViolation,
    QueueFull,
    ReaderTooSlow,
    RequestCancelled,
    StaleIncarnation,
    StateUnavailable,
    TandemError,
    Unauthenticated,
    UnknownModel,
    UnknownName,
    WorkerFailed,
)
from tandemserve.options import (
    ChatMessage,
    GenerateOptions,
    RequestClassName,
    TLSConfig,
)
from tandemserve.results import (
    Accepted,
    Choice,
    Completion,
    Delta,
    Event,
    Finished,
    FinishReason,
    ModelInfo,
    PromptLogprobs,
    SamplingDefaults,
    Timings,
    TokenLogprobs,
    TopLogprob,
    Usage,
)
from tandemserve.version import VERSION

if TYPE_CHECKING:
    from tandemserve.async_client import AsyncClient
    from tandemserve.async_stream import AsyncStream
    from tandemserve.client import Client
    from tandemserve.stream import Stream

__version__ = VERSION

_LAZY = {
    "AsyncClient": "tandemserve.async_client",
    "AsyncStream": "tandemserve.async_stream",
    "Client": "tandemserve.client",
    "Stream": "tandemserve.stream",
}

__all__ = [
    "Accepted",
    "AnswerView",
    "AsyncClient",
    "AsyncStream",
    "BeginningForgotten",
    "CanNeverFit",
    "CancelOutcome",
    "ChatMessage",
    "Choice",
    "Client",
    "ClientClosed",
    "ClientError",
    "ClusterStatus",
    "Completion",
    "ConnectionFailed",
    "ContextTooLong",
    "DeadlineExceeded",
    "Delta",
    "DuplicateRequest",
    "Event",
    "FinishReason",
    "Finished",
    "GenerateOptions",
    "Holding",
    "InternalFailure",
    "InvalidRequest",
    "KvCorrupted",
    "LastWorker",
    "LengthCalibration",
    "LimitExceeded",
    "ModelInfo",
    "NoWorkerAvailable",
    "NotSupported",
    "PermissionDenied",
    "PromptLogprobs",
    "ProtocolViolation",
    "QueueFull",
    "QueuedTask",
    "Queues",
    "ReaderTooSlow",
    "RequestCancelled",
    "RequestClassName",
    "RequestFilter",
    "RequestHistory",
    "RequestList",
    "RequestView",
    "Reservations",
    "SamplingDefaults",
    "StaleIncarnation",
    "StateUnavailable",
    "Stream",
    "TLSConfig",
    "TandemError",
    "Timeline",
    "TimelineEvent",
    "Timings",
    "TokenLogprobs",
    "TopLogprob",
    "Unauthenticated",
    "UnknownModel",
    "UnknownName",
    "Usage",
    "WorkerFailed",
    "WorkerReservations",
    "WorkerView",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'tandemserve' has no attribute {name!r}")
    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
