"""A real gRPC server with scripted answers, for tests of whatever speaks to a router.

It is a threaded server, not an asyncio one, so that it serves synchronous and asyncio clients of
the same process alike: grpc.aio does not take two event loops in one process well.
"""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import NoReturn, Self

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from tandemserve.admin_testing import FakeAdmin
from tandemserve.api.v1 import admin_pb2_grpc, inference_pb2, inference_pb2_grpc
from tandemserve.rpc_errors import ERROR_DOMAIN

__all__ = [
    "Fail",
    "FakeInferenceServer",
    "Hold",
    "Script",
    "accept",
    "answer",
    "finish",
    "joined",
    "say",
]

# Longer than any test; a handler that waits longer is a test that hangs.
_PATIENCE_S = 30.0


@dataclass(frozen=True, slots=True)
class Fail:
    """Abort the call. No code means no details, as when a connection breaks."""

    status: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    message: str = "the connection broke"
    code: str | None = None
    retry_after_s: float | None = None
    gpu_work_spent: bool | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Say nothing until released; the end of the call releases it too."""

    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


Script = Sequence[inference_pb2.GenerateResponse | Fail | Hold]


def accept(**fields: object) -> inference_pb2.GenerateResponse:
    """The first message of every stream; fields are those of RequestAccepted."""
    values = {"model": "fake", "num_prompt_tokens": 3, "seed": 7} | fields
    accepted = inference_pb2.RequestAccepted(**values)  # type: ignore[arg-type]
    return inference_pb2.GenerateResponse(accepted=accepted)


def say(
    first_token_index: int, token_ids: Sequence[int], text: str, index: int = 0
) -> inference_pb2.GenerateResponse:
    """One delta of one answer."""
    delta = inference_pb2.Delta(
        index=index, first_token_index=first_token_index, token_ids=token_ids, text=text
    )
    return inference_pb2.GenerateResponse(delta=delta)


def finish(num_output_tokens: int, index: int = 0) -> inference_pb2.GenerateResponse:
    """The end of one answer, with usage and made-up timings."""
    finished = inference_pb2.ChoiceFinished(
        index=index,
        finish_reason=inference_pb2.FINISH_REASON_STOP,
        matched_string="END",
        usage=inference_pb2.Usage(num_prompt_tokens=3, num_output_tokens=num_output_tokens),
        timings=inference_pb2.Timings(
            prefill_ms=2.0,
            ttft_ms=3.0,
            total_ms=5.0,
            num_blocks_moved=2,
            num_bytes_moved=4096,
            transport="shared_memory",
            prefill_worker="prefill-0",
            decode_worker="decode-1",
            early_binding=True,
        ),
    )
    return inference_pb2.GenerateResponse(finished=finished)


def joined(
    first: inference_pb2.GenerateResponse, *others: inference_pb2.GenerateResponse
) -> inference_pb2.GenerateResponse:
    """Several events in one message."""
    response = inference_pb2.GenerateResponse()
    response.CopyFrom(first)
    response.following.extend(others)
    return response


def answer(text: str, index: int = 0) -> Script:
    """A whole answer of one token and one character at a time."""
    deltas = [say(i, [ord(char)], char, index) for i, char in enumerate(text)]
    return [accept(), *deltas, finish(len(text), index)]


class FakeInferenceServer(FakeAdmin, inference_pb2_grpc.InferenceServiceServicer):
    """Plays one script per `Generate`, in order; without one it echoes the prompt.

    `failures` are used up first, one per call of any kind. What arrived is in `requests` and
    `metadata`. A stopped server can be started again on the same port.
    """

    def __init__(
        self, *, token: str | None = None, tls: grpc.ServerCredentials | None = None
    ) -> None:
        super().__init__()
        self.scripts: deque[Script] = deque()
        self.failures: deque[Fail] = deque()
        self.requests: list[Message] = []
        self.metadata: list[dict[str, str | bytes]] = []
        # Request ids of generations that the client left before their end.
        self.left: list[str] = []
        self.port = 0
        self._token = token
        self._tls = tls
        self._changed = threading.Condition()
        self._server: grpc.Server | None = None
        self._executor: ThreadPoolExecutor | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> Self:
        self._executor = ThreadPoolExecutor(16, thread_name_prefix="fake-router")
        self._server = grpc.server(self._executor, options=[("grpc.so_reuseport", 0)])
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(self, self._server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(self, self._server)
        if self._tls is None:
            self.port = self._server.add_insecure_port(self.target)
        else:
            self.port = self._server.add_secure_port(self.target, self._tls)
        self._server.start()
        return self

    def stop(self) -> None:
        """Break every call and free the port; stopping twice is harmless."""
        server, self._server = self._server, None
        executor, self._executor = self._executor, None
        if server is not None:
            server.stop(None).wait(_PATIENCE_S)
        if executor is not None:
            executor.shutdown()

    def wait_until_left(self, request_id: str) -> bool:
        """Whether the client cancelled this generation, waiting for that to happen."""
        with self._changed:
            return self._changed.wait_for(lambda: request_id in self.left, _PATIENCE_S)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # --- InferenceService ---------------------------------------------------------------------

    def Generate(  # noqa: N802  the name is the contract's
        self, request: inference_pb2.GenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[inference_pb2.GenerateResponse]:
        gone = threading.Event()
        is_over = threading.Event()

        def ended() -> None:
            gone.set()
            if not is_over.is_set():
                with self._changed:
                    self.left.append(request.request_id)
                    self._changed.notify_all()

        context.add_callback(ended)
        self.arrived(request, context, is_over)
        script = self.scripts.popleft() if self.scripts else answer(_echo(request))
        for step in script:
            if isinstance(step, Hold):
                context.add_callback(step.released.set)
        for step in script:
            if isinstance(step, Fail):
                is_over.set()
                _abort(context, step)
            elif isinstance(step, Hold):
                step.reached.set()
                step.released.wait(_PATIENCE_S)
                if gone.is_set():
                    return
            else:
                response = inference_pb2.GenerateResponse(request_id=request.request_id)
                response.MergeFrom(step)
                yield response
        is_over.set()

    def ListModels(  # noqa: N802
        self, request: inference_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> inference_pb2.ListModelsResponse:
        self.arrived(request, context)
        return inference_pb2.ListModelsResponse(models=["fake"])

    def GetModelInfo(  # noqa: N802
        self, request: inference_pb2.GetModelInfoRequest, context: grpc.ServicerContext
    ) -> inference_pb2.GetModelInfoResponse:
        self.arrived(request, context)
        return inference_pb2.GetModelInfoResponse(
            model="fake",
            architecture="LlamaForCausalLM",
            context_length=2048,
            vocab_size=256,
            eos_token_ids=[0, 2],
            has_chat_template=True,
            max_request_tokens=1024,
            default_sampling=inference_pb2.SamplingParams(temperature=0.5),
        )

    def Tokenize(  # noqa: N802
        self, request: inference_pb2.TokenizeRequest, context: grpc.ServicerContext
    ) -> inference_pb2.TokenizeResponse:
        self.arrived(request, context)
        text = request.text or "".join(message.content for message in request.chat.messages)
        return inference_pb2.TokenizeResponse(token_ids=[ord(char) for char in text])

    def arrived(
        self,
        request: Message,
        context: grpc.ServicerContext,
        is_over: threading.Event | None = None,
    ) -> None:
        metadata = dict(context.invocation_metadata())
        self.requests.append(request)
        self.metadata.append(metadata)
        failure: Fail | None = None
        if self._token and metadata.get("authorization") != f"Bearer {self._token}":
            failure = Fail(grpc.StatusCode.UNAUTHENTICATED, "no valid token")
        elif self.failures:
            failure = self.failures.popleft()
        if failure is not None:
            if is_over is not None:
                is_over.set()
            _abort(context, failure)


def _abort(context: grpc.ServicerContext, failure: Fail) -> NoReturn:
    details: list[Message] = []
    if failure.code is not None:
        metadata = {}
        if failure.gpu_work_spent is not None:
            metadata["gpu_work_spent"] = str(failure.gpu_work_spent).lower()
        details.append(
            error_details_pb2.ErrorInfo(reason=failure.code, domain=ERROR_DOMAIN, metadata=metadata)
        )
    if failure.retry_after_s is not None:
        delay = duration_pb2.Duration(nanos=0)
        delay.FromNanoseconds(int(failure.retry_after_s * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=failure.status.value[0], message=failure.message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    if details:
        context.abort_with_status(rpc_status.to_status(status))
    context.abort(failure.status, failure.message)
    raise AssertionError("abort always raises")


def _echo(request: inference_pb2.GenerateRequest) -> str:
    match request.WhichOneof("prompt"):
        case "text":
            text = request.text
        case "tokens":
            text = "".join(chr(token_id) for token_id in request.tokens.ids)
        case _:
            text = request.chat.messages[-1].content
    return text[: request.stop.max_tokens] if request.stop.HasField("max_tokens") else text
