"""What a call can raise. The tree is keyed by `code`, the same words as on the wire.

TandemError
├── InvalidRequest             the caller's fault; repeating it cannot help
│   ├── UnknownModel
│   ├── UnknownName            no request or worker of this cluster has the name
│   └── ContextTooLong
├── DuplicateRequest           the id is in use by another request
├── CanNeverFit                larger than every worker; repeating it cannot help
├── QueueFull                  try again later
├── NoWorkerAvailable          no compatible worker is connected; try again later
├── LastWorker                 nobody would be left to take new tasks; an operator may insist
├── StateUnavailable           the cluster's shared state gives no answer; serving goes on
├── DeadlineExceeded
├── RequestCancelled
├── ReaderTooSlow             more of the answer waited to be read than is kept
├── BeginningForgotten        the answer runs, its first tokens are not kept any more
├── WorkerFailed               a worker failed the request too often
├── KvCorrupted                moved KV did not pass its check; no token was produced from it
├── StaleIncarnation           the message belongs to an earlier life of a process
├── InternalFailure            the cluster broke in a way that it has no word for
└── ClientError                known to the SDK only
    ├── ConnectionFailed       nobody answers, or the connection broke
    ├── Unauthenticated        the token or certificate is missing or wrong
    ├── PermissionDenied       the token is right, but not for this
    ├── LimitExceeded          a quota or message size; waiting is not known to help
    ├── NotSupported           the server does not know this call
    ├── ProtocolViolation      the server sent something that cannot be right
    └── ClientClosed           the client, or the process it was made in, is gone
"""

from typing import ClassVar

__all__ = [
    "BeginningForgotten",
    "CanNeverFit",
    "ClientClosed",
    "ClientError",
    "ConnectionFailed",
    "ContextTooLong",
    "DeadlineExceeded",
    "DuplicateRequest",
    "InternalFailure",
    "InvalidRequest",
    "KvCorrupted",
    "LastWorker",
    "LimitExceeded",
    "NoWorkerAvailable",
    "NotSupported",
    "PermissionDenied",
    "ProtocolViolation",
    "QueueFull",
    "ReaderTooSlow",
    "RequestCancelled",
    "StaleIncarnation",
    "StateUnavailable",
    "TandemError",
    "Unauthenticated",
    "UnknownModel",
    "UnknownName",
    "WorkerFailed",
    "error_class_by_code",
]


class TandemError(Exception):
    """Root of everything a call can raise, except TypeError for arguments of a wrong type."""

    code: ClassVar[str] = "internal"
    # What the class says; an error with a retry delay is retryable whatever its class.
    retryable_by_default: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        gpu_work_spent: bool | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        # One line that ends in what to do.
        self.message = message
        # How long the server asks to wait before a retry.
        self.retry_after_s = retry_after_s
        # Whether a GPU worked for the request; None where the server did not say.
        self.gpu_work_spent = gpu_work_spent
        # The request that failed; None for calls other than generations.
        self.request_id = request_id

    @property
    def retryable(self) -> bool:
        """Whether the same call may succeed later."""
        return self.retryable_by_default or self.retry_after_s is not None


class InvalidRequest(TandemError):
    """A field has a value that no request may have."""

    code = "invalid_request"


class UnknownModel(InvalidRequest):
    """The request names a model that this cluster does not serve."""

    code = "unknown_model"


class UnknownName(InvalidRequest):
    """An operator names a request or a worker that is not there."""

    code = "unknown_name"


class ContextTooLong(InvalidRequest):
    """Prompt and max_tokens together exceed the model's context."""

    code = "context_too_long"


class DuplicateRequest(TandemError):
    """The request id is taken by a request with different content."""

    code = "duplicate_request"


class CanNeverFit(TandemError):
    """No worker of the cluster has enough room, even when it is empty."""

    code = "can_never_fit"


class QueueFull(TandemError):
    """The cluster has more waiting requests than it accepts."""

    code = "queue_full"
    retryable_by_default = True


class NoWorkerAvailable(TandemError):
    """No pair of compatible prefill and decode workers is connected to the router."""

    code = "no_worker_available"
    retryable_by_default = True


class LastWorker(TandemError):
    """Closing this worker would leave nobody of its kind who takes new tasks."""

    code = "last_worker"


class StateUnavailable(TandemError):
    """Redis gives no answer, so what it holds cannot be listed; serving goes on."""

    code = "state_unavailable"
    retryable_by_default = True


class DeadlineExceeded(TandemError):
    """`timeout_s` passed before the answer was complete; the cluster stopped working on it."""

    code = "deadline_exceeded"


class RequestCancelled(TandemError):
    """The request was cancelled, here or by an operator."""

    code = "cancelled"


class ReaderTooSlow(TandemError):
    """More of the answer waited to be read than the router keeps; the cluster stopped."""

    code = "reader_too_slow"


class BeginningForgotten(TandemError):
    """The answer runs, and its first tokens are not kept any more; the message says from where."""

    code = "beginning_forgotten"


class WorkerFailed(TandemError):
    """Workers failed this request more often than the cluster tolerates."""

    code = "worker_failed"
    retryable_by_default = True


class KvCorrupted(TandemError):
    """Moved KV arrived damaged twice; no token was produced from it."""

    code = "kv_corrupted"
    retryable_by_default = True


class StaleIncarnation(TandemError):
    """A process was restarted while the request was in its hands."""

    code = "stale_incarnation"
    retryable_by_default = True


class InternalFailure(TandemError):
    """The cluster failed without a code that this SDK knows."""


class ClientError(TandemError):
    """Root of the errors that the SDK finds itself, or that gRPC and proxies report."""

    code = "client_error"


class ConnectionFailed(ClientError):
    """Nobody answers at the target, or the connection broke and stayed broken."""

    code = "connection_failed"
    retryable_by_default = True


class Unauthenticated(ClientError):
    """The server wants a token or certificate and did not get a valid one."""

    code = "unauthenticated"


class PermissionDenied(ClientError):
    """The caller is known, but may not do this."""

    code = "permission_denied"


class LimitExceeded(ClientError):
    """A quota or a message size is exceeded."""

    code = "limit_exceeded"


class NotSupported(ClientError):
    """The server does not know this call: it is older, or no Tandem router at all."""

    code = "not_supported"


class ProtocolViolation(ClientError):
    """The server sent a gap, a repeat or a contradiction; no token of it was passed on."""

    code = "protocol_violation"


class ClientClosed(ClientError):
    """The client is closed, or was made before a fork in the parent process."""

    code = "client_closed"


def error_class_by_code() -> dict[str, type[TandemError]]:
    """Every leaf by its code, for turning a server's answer into an exception."""
    leaves = [
        value
        for value in globals().values()
        if isinstance(value, type) and issubclass(value, TandemError)
    ]
    return {leaf.code: leaf for leaf in leaves if leaf not in (TandemError, ClientError)}
