"""Domain errors, free of any transport. `runtime/grpc_errors.py` turns `code` into a status.

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
└── StaleIncarnation           the message belongs to an earlier life of a process
"""

from collections.abc import Mapping
from typing import ClassVar


class TandemError(Exception):
    """Root of the errors that reach a user. The message ends in what to do."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        # How long to wait before a retry, where retrying can help.
        self.retry_after_s = retry_after_s


class InvalidRequest(TandemError):
    """A field has a value that no request may have."""

    code = "invalid_request"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class UnknownModel(InvalidRequest):
    """The request names a model that this cluster does not serve."""

    code = "unknown_model"

    def __init__(self, problem: str) -> None:
        super().__init__("model", problem)


class UnknownName(InvalidRequest):
    """An operator names a request or a worker that is not there."""

    code = "unknown_name"


class ContextTooLong(InvalidRequest):
    """Prompt and max_tokens together exceed the model's context."""

    code = "context_too_long"

    def __init__(self, problem: str, field: str = "max_tokens") -> None:
        super().__init__(field, problem)


class DuplicateRequest(TandemError):
    """The request id is taken by a request with different content."""

    code = "duplicate_request"


class CanNeverFit(TandemError):
    """No worker of this cluster has enough KV blocks, even when it is empty."""

    code = "can_never_fit"


class QueueFull(TandemError):
    """A bounded queue is full; nothing was computed for the request."""

    code = "queue_full"
    retryable = True


class NoWorkerAvailable(TandemError):
    """No pair of compatible prefill and decode workers is connected."""

    code = "no_worker_available"
    retryable = True


class LastWorker(TandemError):
    """Closing this worker would leave nobody of its kind who takes new tasks."""

    code = "last_worker"


class StateUnavailable(TandemError):
    """Redis gives no answer, so nobody can say what it holds; running requests do not need it."""

    code = "state_unavailable"
    retryable = True


class DeadlineExceeded(TandemError):
    """The caller's deadline passed; both legs were stopped."""

    code = "deadline_exceeded"


class RequestCancelled(TandemError):
    """The caller left or cancelled; both legs were stopped."""

    code = "cancelled"


class ReaderTooSlow(TandemError):
    """More of the answer waited for the caller than the router keeps; both legs were stopped."""

    code = "reader_too_slow"

    def __init__(self, max_bytes: int, *, is_shared: bool = False) -> None:
        """`is_shared`: the limit is that of all answers together."""
        problem = f"{max_bytes} bytes of the answer were there and not read"
        setting = "max_stream_mib"
        if is_shared:
            problem = (
                f"answers of all requests filled the {max_bytes} bytes that the router has for "
                "them, and of this one most was not read"
            )
            setting = "max_all_streams_mib"
        super().__init__(
            f"{problem}; read faster, ask for fewer answers or logprobs, or raise {setting} of "
            "the router"
        )
        self.max_bytes = max_bytes


class BeginningForgotten(TandemError):
    """The answer is running, and the tokens that the caller wants first are not kept any more."""

    code = "beginning_forgotten"

    def __init__(self, request_id: str, begins: Mapping[int, int | None]) -> None:
        kept = ", ".join(
            f"answer {index} " + ("has ended" if begin is None else f"from token {begin} on")
            for index, begin in sorted(begins.items())
        )
        super().__init__(
            f"request {request_id!r} is running and was read too far to be told again; kept are "
            f"{kept}; send the tokens that you have as its resume, or choose another id"
        )
        # Of each answer: its first token that is kept; None where not even its end is.
        self.begins = dict(begins)


class WorkerFailed(TandemError):
    """Workers failed this request more often than the limit allows."""

    code = "worker_failed"
    retryable = True


class KvCorrupted(TandemError):
    """KV blocks arrived damaged or with a stale generation, again after a recomputation."""

    code = "kv_corrupted"
    retryable = True


class StaleIncarnation(TandemError):
    """A message for or from an earlier life of a process."""

    code = "stale_incarnation"
    retryable = True
