"""The public Inference service: checks a call, hands it to the core, streams what comes back."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc

from router.core import RouterCore
from router.events import CallerLeft, Event, RequestArrived, RequestSpec
from router.prompt_room import SHORT_BYTES, Hold, PromptRoom
from router.served_model import PromptEncoder, ServedModel
from router.stream_log import Starts
from router.streams import AcceptedInfo, RequestStream, StreamBook
from router.wire.generate import (
    GenerateCall,
    accepted_to_proto,
    decode_generate,
    emissions_to_proto,
    messages_of,
)
from router.wire.sampling import StopWishes, default_sampling, resolve_sampling
from runtime.grpc_errors import abort_with
from scheduling.errors import (
    ContextTooLong,
    DeadlineExceeded,
    InvalidRequest,
    NoWorkerAvailable,
    RequestCancelled,
    TandemError,
)
from scheduling.goals import Goals
from scheduling.ids import RequestId
from scheduling.prefix_chain import PromptPrefix
from scheduling.sampling import StopParams, seed_of
from tandemserve.api.v1 import inference_pb2 as pb
from tandemserve.api.v1 import inference_pb2_grpc

SERVICE_NAME = "tandemserve.api.v1.InferenceService"
# Where a call names no max_tokens: what context and workers leave room for, at most this.
_DEFAULT_MAX_TOKENS = 256
# So long the first message waits for a first token that it could carry.
_FIRST_EVENT_PATIENCE_S = 0.005
# From the beginning of a call to the last byte of its request.
_RECEIVE_TIMEOUT_S = 60.0

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class _Begun:
    """A call that has found its stream."""

    stream: RequestStream
    is_attached: bool
    # What the caller has of the answers.
    starts: Starts
    hold: Hold
    joins_events: bool


class InferenceService(inference_pb2_grpc.InferenceServiceServicer):
    """One instance per router; all on the event loop."""

    def __init__(
        self,
        model: ServedModel,
        encoder: PromptEncoder,
        core: RouterCore,
        streams: StreamBook,
        apply: Callable[[Event], None],
        goals: dict[str, Goals],
        room: PromptRoom | None = None,
    ) -> None:
        self._model = model
        self._encoder = encoder
        self._core = core
        self._streams = streams
        self._apply = apply
        self._goals = goals
        self._room = room or PromptRoom()
        self.is_draining = False

    async def Generate(  # noqa: N802 - the name is given by the protocol
        self, request: Any, context: Context
    ) -> AsyncIterator[pb.GenerateResponse]:
        """See InferenceService.Generate. Reads its one message itself: see `add_to_server`."""
        try:
            call = await self._begin(context)
        except Exception as error:  # refused, or a defect: either way nothing was begun
            with _caller_may_be_gone():
                await abort_with(context, error)
        if call is None:
            return  # it was over before its request had arrived
        stream, starts = call.stream, call.starts
        if stream.is_over:
            call.hold.release()
        else:
            stream.holds.add(call.hold)
        reader = stream.take_over()
        try:
            accepted = accepted_to_proto(stream.request_id, stream.info, call.is_attached)
            opening = None
            if call.joins_events and await stream.has_begun(_FIRST_EVENT_PATIENCE_S):
                opening = accepted
            else:
                yield accepted
            async with aclosing(stream.follow(reader, starts)) as batches:
                async for batch in batches:
                    for response in emissions_to_proto(
                        stream.request_id,
                        batch,
                        stream.info,
                        self._model.text_of,
                        joins=call.joins_events,
                        behind=opening,
                    ):
                        yield response
                    opening = None
            if opening is not None:  # taken over meanwhile
                yield opening
        finally:
            # Cancelled, disconnected or finished: a request without a reader ends.
            if stream.is_reader(reader) and not stream.is_over:
                self._apply(CallerLeft(stream.request_id))
            stream.holds.discard(call.hold)
            call.hold.release()
            stream.leave()
        if stream.failure is not None:
            failure = stream.failure
            with _caller_may_be_gone():
                await abort_with(context, failure.error, gpu_work_spent=failure.gpu_work_spent)
        if not stream.is_reader(reader):
            message = "another call with the same request id took this stream over"
            with _caller_may_be_gone():
                await abort_with(context, RequestCancelled(message), gpu_work_spent=True)

    async def ListModels(  # noqa: N802 - the name is given by the protocol
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        """See InferenceService.ListModels."""
        return pb.ListModelsResponse(models=[self._model.name])

    async def GetModelInfo(  # noqa: N802 - the name is given by the protocol
        self, request: pb.GetModelInfoRequest, context: Context
    ) -> pb.GetModelInfoResponse:
        """See InferenceService.GetModelInfo."""
        try:
            self._model.require_name(request.model)
        except TandemError as error:
            await abort_with(context, error)
        config, sampling = self._model.config, default_sampling(self._model.defaults)
        return pb.GetModelInfoResponse(
            model=self._model.name,
            architecture=config.architecture,
            context_length=self._model.context_length,
            vocab_size=config.vocab_size,
            eos_token_ids=config.eos_token_ids,
            has_chat_template=self._model.template is not None,
            max_request_tokens=min(
                self._model.context_length, self._core.state.fleet.max_request_tokens()
            ),
            default_sampling=pb.SamplingParams(
                temperature=sampling.temperature,
                top_k=sampling.top_k,
                top_p=sampling.top_p,
                min_p=sampling.min_p,
                repetition_penalty=sampling.repetition_penalty,
            ),
        )

    async def Tokenize(  # noqa: N802 - the name is given by the protocol
        self, request: pb.TokenizeRequest, context: Context
    ) -> pb.TokenizeResponse:
        """See InferenceService.Tokenize."""
        try:
            self._model.require_name(request.model)
            kind = request.WhichOneof("prompt")
            if kind is None:
                raise InvalidRequest("prompt", "is missing; set text or chat")
            messages = messages_of(request.chat) if kind == "chat" else None
            text = request.text if kind == "text" else None
            with self._room.hold(request.ByteSize()):
                token_ids = await self._encoder.encode(text, messages, None, is_bounded=False)
        except Exception as error:  # refused, or a defect: abort_with tells them apart
            await abort_with(context, error)
        return pb.TokenizeResponse(token_ids=token_ids)

    async def _begin(self, context: Context) -> "_Begun | None":
        """The call's place among the streams; None where the caller has left already."""
        message = await self._received(context)
        if message is None:
            return None
        hold = self._room.hold(len(message))
        try:
            decode = partial(decode_generate, message)
            is_long = len(message) > SHORT_BYTES
            call = await self._encoder.run(decode, len(message)) if is_long else decode()
            # What has been taken out of it need not be held twice.
            del message, decode
            stream, is_attached = await self._accept(call, context)
        except BaseException:
            hold.release()
            raise
        return _Begun(stream, is_attached, call.resume.starts, hold, call.joins_events)

    async def _received(self, context: Context) -> bytes | None:
        try:
            async with asyncio.timeout(_RECEIVE_TIMEOUT_S):
                message = await context.read()
        except TimeoutError:
            problem = f"the request did not arrive within {_RECEIVE_TIMEOUT_S:g} s; send it again"
            raise DeadlineExceeded(problem) from None
        return message if isinstance(message, bytes) else None

    async def _accept(self, call: GenerateCall, context: Context) -> tuple[RequestStream, bool]:
        if self.is_draining:
            message = "this router is shutting down; send the request to another replica"
            raise NoWorkerAvailable(message, retry_after_s=1.0)
        request_id = RequestId(call.request_id or secrets.token_hex(12))
        known = self._find(request_id, call)
        if known is not None:
            return known, True
        self._model.require_name(call.model)
        token_ids = await self._encoder.encode(call.text, call.messages, call.token_ids)
        block_sizes = {view.hello.block_size for view in self._core.state.fleet}
        prefix = await self._encoder.prefix(token_ids, call.cache_salt, block_sizes)
        # A second call with this id may have come while the prompt was tokenised.
        known = self._find(request_id, call)
        if known is not None:
            return known, True
        spec = self._spec(request_id, call, token_ids, prefix, context.time_remaining())
        info = AcceptedInfo(
            self._model.name,
            len(token_ids),
            spec.sampling.seed,
            spec.request_class,
            spec.stop.max_tokens,
        )
        stream = RequestStream(
            request_id, call.fingerprint, spec.num_choices, info, call.resume.starts
        )
        self._streams.open(stream)
        try:
            self._apply(RequestArrived(spec))
        except TandemError:
            self._streams.discard(request_id)
            raise
        return stream, False

    def _find(self, request_id: RequestId, call: GenerateCall) -> RequestStream | None:
        """The stream of a repeated call, unless it began behind what this caller has.

        Raises: BeginningForgotten where a running one did and the caller wants all of it.
        """
        known = self._streams.find(request_id, call.fingerprint)
        if known is None or known.can_serve(call.resume.starts):
            return known
        if not known.is_over:
            if known.forgotten is not None and not call.resume.starts:
                raise known.forgotten
            self._apply(CallerLeft(request_id))
        self._streams.discard(request_id)
        return None

    def _spec(
        self,
        request_id: RequestId,
        call: GenerateCall,
        token_ids: tuple[int, ...],
        prefix: PromptPrefix,
        deadline_s: float | None,
    ) -> RequestSpec:
        usual = self._goals[call.request_class]
        goals = Goals.wished(call.ttft_s, call.tpot_s, call.jct_s, usual, call.tbt_s)
        seed = seed_of(request_id) if call.resume.seed is None else call.resume.seed
        sampling = resolve_sampling(call.sampling, call.stop, self._model, seed)
        stop = StopParams(
            max_tokens=self._max_tokens(call.stop, len(token_ids)),
            stop_token_ids=call.stop.end_token_ids(self._model.config),
            stop_strings=call.stop.strings,
        )
        call.resume.check(stop, self._model.config.vocab_size)
        return RequestSpec(
            request_id=request_id,
            prompt_token_ids=token_ids,
            sampling=sampling,
            stop=stop,
            num_choices=call.num_choices,
            tenant=call.tenant,
            session=call.session,
            cache_salt=call.cache_salt,
            prefix=prefix,
            request_class=call.request_class,
            ttft_s=goals.ttft_s,
            tpot_s=goals.tpot_s,
            jct_s=goals.jct_s,
            tbt_s=goals.tbt_s,
            deadline_s=deadline_s,
            resumed=call.resume.token_ids,
        )

    def _max_tokens(self, wishes: StopWishes, num_prompt_tokens: int) -> int:
        context = self._model.context_length
        room = context - num_prompt_tokens
        self._model.require_room(num_prompt_tokens)
        wanted = wishes.max_tokens
        if wanted is None and wishes.min_tokens <= room:
            # What nobody asked for must not make the request too large for the workers.
            held = self._core.state.fleet.max_request_tokens() - num_prompt_tokens
            return max(wishes.min_tokens, min(room, _DEFAULT_MAX_TOKENS, max(1, held)))
        wanted = wanted or wishes.min_tokens
        if wanted > room:
            raise ContextTooLong(
                f"prompt ({num_prompt_tokens}) and answer ({wanted}) exceed the model's "
                f"context of {context}; ask for at most {room} tokens"
            )
        return wanted


def add_to_server(service: InferenceService, server: grpc.aio.Server) -> None:
    """Register the service; Generate takes its request as bytes, when it asks for them.

    What gRPC reads and parses by itself it keeps until the end of the call, beside everything
    that is made of it. On the wire there is no difference.
    """
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
    generate: Any = grpc.stream_stream_rpc_method_handler(
        service.Generate, response_serializer=pb.GenerateResponse.SerializeToString
    )
    server.add_registered_method_handlers(SERVICE_NAME, {"Generate": generate})


@contextmanager
def _caller_may_be_gone() -> Iterator[None]:
    """A deadline ends the call at both ends at once: then no status can be sent any more."""
    try:
        yield
    except grpc.aio.InternalError as error:
        # What gRPC itself raises into the handler of a call that is over.
        raise asyncio.CancelledError from error
