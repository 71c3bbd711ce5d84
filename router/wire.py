"""The public API: protobuf <-> the router's dataclasses. What a caller sent is checked here."""

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from router.events import EmitFinished, EmitTokens, PhaseTimings
from router.streams import AcceptedInfo, Emission
from scheduling.errors import InvalidRequest
from tandemserve.api.v1 import inference_pb2 as pb

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_LABEL = re.compile(r"[A-Za-z0-9._:@/-]{1,128}")
_MAX_CHOICES = 16
_MAX_STOPS = 16
_MAX_STOP_CHARS = 256
_MAX_LOGPROBS = 20
_MAX_TEMPERATURE = 100.0
_CLASS_NAMES = {
    pb.REQUEST_CLASS_UNSPECIFIED: "standard",
    pb.REQUEST_CLASS_INTERACTIVE: "interactive",
    pb.REQUEST_CLASS_STANDARD: "standard",
    pb.REQUEST_CLASS_BATCH: "batch",
}
_FINISH_REASONS = {"stop": pb.FINISH_REASON_STOP, "length": pb.FINISH_REASON_LENGTH}


@dataclass(frozen=True, slots=True)
class SamplingWishes:
    """What the caller set; None takes the model's default."""

    temperature: float | None
    top_k: int | None
    top_p: float | None
    seed: int | None


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """A Generate call whose values are legal by themselves; not yet tokenised."""

    request_id: str
    # Of everything but the id: a repeated call has the same.
    fingerprint: bytes
    model: str
    # Exactly one of the three is set.
    text: str | None
    messages: tuple[tuple[str, str], ...] | None
    token_ids: tuple[int, ...] | None
    sampling: SamplingWishes
    max_tokens: int | None
    stop_strings: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    ignore_eos: bool
    num_choices: int
    num_logprobs: int | None
    ttft_s: float | None
    tpot_s: float | None
    request_class: str
    tenant: str
    session: str


def generate_call(request: pb.GenerateRequest) -> GenerateCall:
    """Check a Generate request. Raises: InvalidRequest, naming the field and the legal values."""
    if request.request_id and not _REQUEST_ID.fullmatch(request.request_id):
        raise InvalidRequest("request_id", "use 1 to 128 characters of A-Z a-z 0-9 . _ : -")
    for field in ("tenant", "session"):
        if getattr(request, field) and not _LABEL.fullmatch(getattr(request, field)):
            raise InvalidRequest(field, "use 1 to 128 characters of A-Z a-z 0-9 . _ : @ / -")
    if request.request_class not in _CLASS_NAMES:
        known = "INTERACTIVE, STANDARD or BATCH"
        raise InvalidRequest("request_class", f"{request.request_class} is unknown; use {known}")
    if request.n > _MAX_CHOICES:
        raise InvalidRequest("n", f"{request.n} answers; ask for at most {_MAX_CHOICES}")
    num_logprobs = request.num_logprobs if request.HasField("num_logprobs") else None
    if num_logprobs is not None and num_logprobs > _MAX_LOGPROBS:
        raise InvalidRequest("num_logprobs", f"{num_logprobs}; ask for at most {_MAX_LOGPROBS}")
    text, messages, token_ids = _prompt(request)
    stop, level = request.stop, request.service_level
    return GenerateCall(
        request_id=request.request_id,
        fingerprint=_fingerprint(request),
        model=request.model,
        text=text,
        messages=messages,
        token_ids=token_ids,
        sampling=_sampling(request.sampling),
        max_tokens=_max_tokens(stop),
        stop_strings=_stop_strings(stop.strings),
        stop_token_ids=tuple(stop.token_ids),
        ignore_eos=stop.ignore_eos,
        num_choices=request.n or 1,
        num_logprobs=num_logprobs,
        ttft_s=_goal_s("ttft_ms", level.ttft_ms) if level.HasField("ttft_ms") else None,
        tpot_s=_goal_s("tpot_ms", level.tpot_ms) if level.HasField("tpot_ms") else None,
        request_class=_CLASS_NAMES[request.request_class],
        tenant=request.tenant or "default",
        session=request.session,
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
    )
    return pb.GenerateResponse(request_id=request_id, accepted=accepted)


def emissions_to_proto(
    request_id: str,
    batch: Sequence[Emission],
    info: AcceptedInfo,
    text_of: Callable[[int], str],
) -> list[pb.GenerateResponse]:
    """As few messages as keep the order: tokens of one answer that wait together go together.

    `text_of` spells the alternatives of logprobs.
    """
    responses: list[pb.GenerateResponse] = []
    open_delta_by_index: dict[int, pb.Delta] = {}
    for emission in batch:
        if isinstance(emission, EmitTokens):
            delta = open_delta_by_index.get(emission.index)
            if delta is None:
                response = pb.GenerateResponse(request_id=request_id)
                delta = response.delta
                delta.index = emission.index
                delta.first_token_index = emission.tokens.first_token_index
                open_delta_by_index[emission.index] = delta
                responses.append(response)
            _add_tokens(delta, emission, text_of)
        else:
            open_delta_by_index.pop(emission.index, None)
            finished = _finished_to_proto(emission, info)
            responses.append(pb.GenerateResponse(request_id=request_id, finished=finished))
    return responses


def _add_tokens(delta: pb.Delta, emission: EmitTokens, text_of: Callable[[int], str]) -> None:
    tokens = emission.tokens
    delta.token_ids.extend(tokens.token_ids)
    delta.text += tokens.text
    for entry in tokens.logprobs:
        logprobs = delta.logprobs.add(logprob=entry.logprob)
        for token_id, logprob in entry.top:
            logprobs.top.add(token_id=token_id, logprob=logprob, text=text_of(token_id))


def _finished_to_proto(finished: EmitFinished, info: AcceptedInfo) -> pb.ChoiceFinished:
    message = pb.ChoiceFinished(
        index=finished.index,
        finish_reason=_FINISH_REASONS[finished.finish_reason],
        usage=pb.Usage(
            num_prompt_tokens=info.num_prompt_tokens,
            num_output_tokens=finished.num_output_tokens,
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
    )


def _prompt(
    request: pb.GenerateRequest,
) -> tuple[str | None, tuple[tuple[str, str], ...] | None, tuple[int, ...] | None]:
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
            return None, None, tuple(request.tokens.ids)
        case _:
            raise InvalidRequest("prompt", "is missing; set text, chat or tokens")


def _sampling(params: pb.SamplingParams) -> SamplingWishes:
    temperature = params.temperature if params.HasField("temperature") else None
    if temperature is not None and not 0 <= temperature <= _MAX_TEMPERATURE:
        legal = f"use 0 (greedy) to {_MAX_TEMPERATURE:g}"
        raise InvalidRequest("temperature", f"{temperature} is out of range; {legal}")
    top_p = params.top_p if params.HasField("top_p") else None
    if top_p is not None and not 0 < top_p <= 1:
        raise InvalidRequest("top_p", f"{top_p} is out of range; use a value in (0, 1]")
    top_k = params.top_k if params.HasField("top_k") else None
    if top_k is not None and top_k < 0:
        raise InvalidRequest("top_k", f"{top_k} is negative; use 0 (all tokens) or more")
    seed = params.seed if params.HasField("seed") else None
    return SamplingWishes(temperature, top_k, top_p, seed)


def _max_tokens(stop: pb.StopConditions) -> int | None:
    if not stop.HasField("max_tokens"):
        return None
    if stop.max_tokens < 1:
        raise InvalidRequest("max_tokens", "is 0; ask for at least 1 token")
    return stop.max_tokens


def _stop_strings(strings: Sequence[str]) -> tuple[str, ...]:
    if len(strings) > _MAX_STOPS:
        raise InvalidRequest("stop", f"{len(strings)} stop strings; send at most {_MAX_STOPS}")
    for string in strings:
        if not 1 <= len(string) <= _MAX_STOP_CHARS:
            legal = f"use 1 to {_MAX_STOP_CHARS} characters"
            raise InvalidRequest("stop", f"a stop string has {len(string)} characters; {legal}")
    return tuple(strings)


def _goal_s(field: str, milliseconds: float) -> float:
    if not math.isfinite(milliseconds) or milliseconds <= 0:
        raise InvalidRequest(field, f"{milliseconds} is no goal; use milliseconds above 0")
    return milliseconds / 1e3


def _fingerprint(request: pb.GenerateRequest) -> bytes:
    content = pb.GenerateRequest()
    content.CopyFrom(request)
    content.request_id = ""
    return hashlib.blake2b(content.SerializeToString(deterministic=True), digest_size=16).digest()
