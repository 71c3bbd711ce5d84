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
    ClusterStatus,
    Holding,
    QueuedTask,
    Queues,
    Reservations,
    WorkerReservations,
    WorkerView,
)
from tandemserve.errors import (
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
    LimitExceeded,
    NotSupported,
    NoWorkerAvailable,
    PermissionDenied,
    ProtocolViolation,
    QueueFull,
    RequestCancelled,
    StaleIncarnation,
    StateUnavailable,
    TandemError,
    Unauthenticated,
    UnknownModel,
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
    "AsyncClient",
    "AsyncStream",
    "CanNeverFit",
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
    "LimitExceeded",
    "ModelInfo",
    "NoWorkerAvailable",
    "NotSupported",
    "PermissionDenied",
    "ProtocolViolation",
    "QueueFull",
    "QueuedTask",
    "Queues",
    "RequestCancelled",
    "RequestClassName",
    "Reservations",
    "SamplingDefaults",
    "StaleIncarnation",
    "StateUnavailable",
    "Stream",
    "TLSConfig",
    "TandemError",
    "Timings",
    "TokenLogprobs",
    "TopLogprob",
    "Unauthenticated",
    "UnknownModel",
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
