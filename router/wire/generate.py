"""The public API: protobuf <-> the router's dataclasses. What a caller sent is checked here."""

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from router.events import EmitFinished, EmitPromptLogprobs, EmitTokens, PhaseTimings
from router.resuming import ResumeWishes, ToldAnswer, resume_wishes
from router.stream_log import Emission
from router.streams import AcceptedInfo
from router.wire.sampling import SamplingWishes, StopWishes, sampling_wishes, stop_wishes
from runtime.grpc_errors import MalformedMessage
from scheduling.errors import InvalidRequest
from scheduling.sampling import PromptLogprobs
from tandemserve.api.v1 import inference_pb2 as pb

_METHOD = "/tandemserve.api.v1.InferenceService/Generate"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LABEL = re.compile(r"[A-Za-z0-9._:@/-]{1,128}")
_MAX_CHOICES = 16
_MAX_SALT_CHARS = 128
# More of them are converted on a thread: on the event loop it would take milliseconds.
_MAX_IDS_AT_ONCE = 4096
_CLASS_NAMES = {
    pb.REQUEST_CLASS_UNSPECIFIED: "standard",
    pb.REQUEST_CLASS_INTERACTIVE: "interactive",
    pb.REQUEST_CLASS_STANDARD: "standard",
    pb.REQUEST_CLASS_BATCH: "batch",
}
_FINISH_REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """A Generate call whose values are legal by themselves; not yet tokenised."""

    request_id: str
    # Of everything but the id: a repeated call has the same.
    fingerprint: bytes
    model: str
    # Exactly one of the three is set. Many token ids are still the message's own.
    text: str | None
    messages: tuple[tuple[str, str], ...] | None
    token_ids: Sequence[int] | None
    sampling: SamplingWishes
    stop: StopWishes
    resume: ResumeWishes
    num_choices: int
    # Events that are ready together may be one message.
    joins_events: bool
    ttft_s: float | None
    tpot_s: float | None
    jct_s: float | None
    tbt_s: float | None
    request_class: str
    tenant: str
    session: str
    cache_salt: str


def decode_generate(message: bytes) -> GenerateCall:
    """A Generate request as it arrived.

    Raises: MalformedMessage; InvalidRequest, as `generate_call` does.
    """
    try:
        request = pb.GenerateRequest.FromString(message)
    except DecodeError:
        raise MalformedMessage(_METHOD) from None
    return generate_call(request)


def generate_call(request: pb.GenerateRequest) -> GenerateCall:
    """Check a Generate request. Raises: InvalidRequest, naming the field and the legal values."""
    if request.request_id and not _REQUEST_ID.fullmatch(request.request_id):
        raise InvalidRequest("request_id", "use 1 to 128 characters of A-Z a-z 0-9 . _ : -")
    for field in ("tenant", "session"):
        if getattr(request, field) and not _LABEL.fullmatch(getattr(request, field)):
            raise InvalidRequest(field, "use 1 to 128 characters of A-Z a-z 0-9 . _ : @ / -")
    if len(request.cache_salt) > _MAX_SALT_CHARS:
        raise InvalidRequest("cache_salt", f"use at most {_MAX_SALT_CHARS} characters")
    if request.request_class not in _CLASS_NAMES:
        known = "INTERACTIVE, STANDARD or BATCH"
        raise InvalidRequest("request_class", f"{request.request_class} is unknown; use {known}")
    if request.n > _MAX_CHOICES:
        raise InvalidRequest("n", f"{request.n} answers; ask for at most {_MAX_CHOICES}")
    text, messages, token_ids = _prompt(request)
    level, resume = request.service_level, _resume(request)
    return GenerateCall(
        request_id=request.request_id,
        fingerprint=_fingerprint(request),
        model=request.model,
        text=text,
        messages=messages,
        token_ids=token_ids,
        sampling=sampling_wishes(request),
        stop=resume.limited(stop_wishes(request.stop)),
        resume=resume,
        num_choices=request.n or 1,
        joins_events=request.joins_events,
        ttft_s=_goal_s("ttft_ms", level.ttft_ms) if level.HasField("ttft_ms") else None,
        tpot_s=_goal_s("tpot_ms", level.tpot_ms) if level.HasField("tpot_ms") else None,
        jct_s=_goal_s("jct_ms", level.jct_ms) if level.HasField("jct_ms") else None,
        tbt_s=_goal_s("tbt_ms", level.tbt_ms) if level.HasField("tbt_ms") else None,
        request_class=_CLASS_NAMES[request.request_class],
        tenant=request.tenant or "default",
        session=request.session,
        cache_salt=request.cache_salt,
    )


def messages_of(chat: pb.ChatPrompt) -> tuple[tuple[str, str], ...]:
    """(role, content) pairs. Raises: InvalidRequest for an empty conversation."""
    if not chat.messages:
        raise InvalidRequest("chat", "no messages; send at least one of role user")
    return tuple((message.role, message.content) for message in chat.messages)


def accepted_to_proto(request_id: str, info: AcceptedInfo, attached: bool) -> pb.GenerateResponse:
    """The first message of a stream."""
    accepted = pb.RequestAccepted(
        model=info.model,
        num_prompt_tokens=info.num_prompt_tokens,
        attached=attached,
        seed=info.seed,
        max_tokens=info.max_tokens,
    )
    return pb.GenerateResponse(request_id=request_id, accepted=accepted)


def emissions_to_proto(
    request_id: str,
    batch: Sequence[Emission],
    info: AcceptedInfo,
    text_of: Callable[[int], str],
    *,
    joins: bool = False,
    behind: pb.GenerateResponse | None = None,
) -> list[pb.GenerateResponse]:
    """As few messages as keep the order: tokens of one answer that wait together go together.

    `text_of` spells the alternatives of logprobs. Where the caller `joins` events, one message is
    all; `behind` is one that was not sent yet, and goes first.
    """
    responses = [] if behind is None else [behind]

    def next_response() -> pb.GenerateResponse:
        if joins and responses:
            return responses[0].following.add()
        responses.append(pb.GenerateResponse(request_id=request_id))
        return responses[-1]

    open_delta_by_index: dict[int, pb.Delta] = {}
    for emission in batch:
        if isinstance(emission, EmitTokens):
            delta = open_delta_by_index.get(emission.index)
            if delta is None:
                delta = next_response().delta
                delta.index = emission.index
                delta.first_token_index = emission.tokens.first_token_index
                open_delta_by_index[emission.index] = delta
            _add_tokens(delta, emission, text_of)
        elif isinstance(emission, EmitPromptLogprobs):
            _write_prompt_logprobs(next_response().prompt_logprobs, emission.logprobs, text_of)
        else:
            open_delta_by_index.pop(emission.index, None)
            next_response().finished.MergeFrom(_finished_to_proto(emission, info))
    return responses


def _add_tokens(delta: pb.Delta, emission: EmitTokens, text_of: Callable[[int], str]) -> None:
    tokens = emission.tokens
    delta.token_ids.extend(tokens.token_ids)
    delta.text += tokens.text
    for entry in tokens.logprobs:
        logprobs = delta.logprobs.add(logprob=entry.logprob)
        for token_id, logprob in entry.top:
            logprobs.top.add(token_id=token_id, logprob=logprob, text=text_of(token_id))


def _write_prompt_logprobs(
    message: pb.PromptLogprobs, logprobs: PromptLogprobs, text_of: Callable[[int], str]
) -> None:
    num_top = logprobs.num_top
    message.first_token_index = logprobs.first_token_index
    for position, logprob in enumerate(logprobs.logprobs):
        entry = message.logprobs.add(logprob=logprob)
        for place in range(position * num_top, (position + 1) * num_top):
            token_id = logprobs.top_token_ids[place]
            value = logprobs.top_logprobs[place]
            entry.top.add(token_id=token_id, logprob=value, text=text_of(token_id))


def _finished_to_proto(finished: EmitFinished, info: AcceptedInfo) -> pb.ChoiceFinished:
    message = pb.ChoiceFinished(
        index=finished.index,
        finish_reason=_FINISH_REASONS[finished.finish_reason],
        usage=pb.Usage(
            num_prompt_tokens=info.num_prompt_tokens,
            num_output_tokens=finished.num_output_tokens,
            num_cached_tokens=finished.num_cached_tokens,
        ),
        timings=_timings_to_proto(finished.timings),
    )
    if isinstance(finished.matched_stop, str):
        message.matched_string = finished.matched_stop
    elif finished.matched_stop is not None:
        message.matched_token_id = finished.matched_stop
    return message


def _timings_to_proto(timings: PhaseTimings) -> pb.Timings:
    return pb.Timings(
        prompt_queue_ms=timings.prompt_queue_s * 1e3,
        prefill_ms=timings.prefill_s * 1e3,
        generation_queue_ms=timings.generation_queue_s * 1e3,
        transfer_ms=timings.transfer_s * 1e3,
        decode_ms=timings.decode_s * 1e3,
        ttft_ms=timings.ttft_s * 1e3,
        tpot_ms=None if timings.tpot_s is None else timings.tpot_s * 1e3,
        total_ms=timings.total_s * 1e3,
        num_blocks_moved=timings.num_blocks_moved,
        num_bytes_moved=timings.num_bytes_moved,
        transport=timings.transport,
        prefill_worker=timings.prefill_worker,
        decode_worker=timings.decode_worker,
        early_binding=timings.early_binding,
        num_preemptions=timings.num_preemptions,
        num_migrations=timings.num_migrations,
        num_blocks_skipped=timings.num_blocks_skipped,
        num_swaps=timings.num_swaps,
        num_blocks_borrowed=timings.num_blocks_borrowed,
    )


def _prompt(
    request: pb.GenerateRequest,
) -> tuple[str | None, tuple[tuple[str, str], ...] | None, Sequence[int] | None]:
    match request.WhichOneof("prompt"):
        case "text":
            if not request.text:
                raise InvalidRequest("text", "the prompt is empty; send at least one character")
            return request.text, None, None
        case "chat":
            return None, messages_of(request.chat), None
        case "tokens":
            if not request.tokens.ids:
                raise InvalidRequest("tokens", "the prompt is empty; send at least one token id")
            ids = request.tokens.ids
            return None, None, tuple(ids) if len(ids) <= _MAX_IDS_AT_ONCE else ids
        case _:
            raise InvalidRequest("prompt", "is missing; set text, chat or tokens")


def _resume(request: pb.GenerateRequest) -> ResumeWishes:
    if not request.HasField("resume"):
        return ResumeWishes()
    resume = request.resume
    return resume_wishes(
        request.n or 1,
        [ToldAnswer(c.index, tuple(c.token_ids), c.is_finished) for c in resume.choices],
        seed=resume.seed if resume.HasField("seed") else None,
        max_tokens=(resume.max_tokens or None) if resume.HasField("max_tokens") else None,
    )


def _goal_s(field: str, milliseconds: float) -> float:
    if not math.isfinite(milliseconds) or milliseconds <= 0:
        raise InvalidRequest(field, f"{milliseconds} is no goal; use milliseconds above 0")
    return milliseconds / 1e3


def _fingerprint(request: pb.GenerateRequest) -> bytes:
    # A prompt may be large, so the rest is taken out of the message, not the content copied.
    request_id, resume = request.request_id, pb.Resume()
    resume.CopyFrom(request.resume)
    has_resume = request.HasField("resume")
    request.request_id = ""
    # What the caller has of the answer, and how it reads it, are no part of the question.
    joins_events, request.joins_events = request.joins_events, False
    request.ClearField("resume")
    content = request.SerializeToString(deterministic=True)
    request.joins_events = joins_events
    request.request_id = request_id
    if has_resume:
        request.resume.CopyFrom(resume)
    return hashlib.blake2b(content, digest_size=16).digest()
