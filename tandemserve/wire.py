"""Arguments and results <-> protobuf. Values are judged by the server; only types, and what a
field cannot hold at all, are judged here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import Message

from tandemserve.api.v1 import inference_pb2
from tandemserve.errors import InvalidRequest
from tandemserve.options import ChatMessage, GenerateOptions
from tandemserve.results import (
    Accepted,
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

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    D = TypeVar("D", bound=DataclassInstance)

Prompt = str | Iterable[int]
Messages = Iterable[ChatMessage | Mapping[str, str]]

_REQUEST_CLASSES = {
    "interactive": inference_pb2.REQUEST_CLASS_INTERACTIVE,
    "standard": inference_pb2.REQUEST_CLASS_STANDARD,
    "batch": inference_pb2.REQUEST_CLASS_BATCH,
}
_FINISH_REASONS = {
    inference_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    inference_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}


# --- arguments to protobuf --------------------------------------------------------------------


class _Arguments:
    """Typed reads of caller's options; every complaint names the option."""

    def __init__(self, options: GenerateOptions) -> None:
        unknown = sorted(options.keys() - GenerateOptions.__annotations__.keys())
        if unknown:
            known = ", ".join(GenerateOptions.__annotations__)
            raise TypeError(f"unknown option {unknown[0]!r}; options are {known}")
        self._options: Mapping[str, object] = dict(options)

    def integer(self, name: str, lowest: int, highest: int) -> int | None:
        value = self._options.get(name)
        return None if value is None else _integer(name, value, lowest, highest)

    def count(self, name: str) -> int | None:
        return self.integer(name, 0, 2**32 - 1)

    def max_tokens(self) -> int | None:
        # 0 fits the field, so that the server says what is wrong with it.
        lowest = 0 if self._options.get("max_tokens") == 0 else 1
        return self.integer("max_tokens", lowest, 2**32 - 1)

    def num_answers(self) -> int | None:
        n = self.count("n")
        if n == 0:  # on the wire that says nothing, and one answer would come
            raise _invalid("n", "0 answers; ask for at least 1")
        return n

    def number(self, name: str) -> float | None:
        value = self._options.get(name)
        return None if value is None else _number(name, value)

    def text(self, name: str) -> str | None:
        value = self._options.get(name)
        return None if value is None else _text(name, value)

    def flag(self, name: str) -> bool:
        value = self._options.get(name, False)
        if not isinstance(value, bool):
            raise _wrong_type(name, "True or False", value)
        return value

    def request_class(self) -> inference_pb2.RequestClass | None:
        name = self.text("request_class")
        if name is None:
            return None
        if name not in _REQUEST_CLASSES:
            choices = ", ".join(_REQUEST_CLASSES)
            raise _invalid("request_class", f"{name!r} is unknown; choose one of {choices}")
        return _REQUEST_CLASSES[name]

    def stop_strings(self) -> list[str]:
        stop = self._options.get("stop")
        if stop is None:
            return []
        if isinstance(stop, str):
            return [_text("stop", stop)]
        return [_text("stop", item) for item in _iterated("stop", "strings", stop)]

    def logit_bias(self) -> dict[int, float]:
        biases = self._options.get("logit_bias")
        if biases is None:
            return {}
        if not isinstance(biases, Mapping):
            raise _wrong_type("logit_bias", "a mapping of token ids to numbers", biases)
        return {
            _integer("logit_bias", token_id, 0, 2**32 - 1): _number("logit_bias", bias)
            for token_id, bias in biases.items()
        }

    def stop_token_ids(self) -> list[int]:
        ids = self._options.get("stop_token_ids")
        return [] if ids is None else _token_ids("stop_token_ids", ids)


def generate_request(
    options: GenerateOptions, *, new_request_id: str
) -> inference_pb2.GenerateRequest:
    """The request without its prompt; the new id serves where the caller chose none.

    There always is one, so that the call can be repeated without generating anything new. A seed
    that nobody chose is the router's to take from the id: drawn here, it would make a repeated
    call another one.
    Raises: TypeError; InvalidRequest for a value that its field cannot hold.
    """
    read = _Arguments(options)
    request = inference_pb2.GenerateRequest(
        request_id=read.text("request_id") or new_request_id,
        model=read.text("model"),
        sampling=inference_pb2.SamplingParams(
            temperature=read.number("temperature"),
            top_k=read.integer("top_k", -(2**31), 2**31 - 1),
            top_p=read.number("top_p"),
            seed=read.integer("seed", 0, 2**64 - 1),
            min_p=read.number("min_p"),
            repetition_penalty=read.number("repetition_penalty"),
            presence_penalty=read.number("presence_penalty"),
            frequency_penalty=read.number("frequency_penalty"),
            logit_bias=read.logit_bias(),
        ),
        stop=inference_pb2.StopConditions(
            max_tokens=read.max_tokens(),
            strings=read.stop_strings(),
            token_ids=read.stop_token_ids(),
            ignore_eos=read.flag("ignore_eos"),
            min_tokens=read.count("min_tokens"),
        ),
        n=read.num_answers(),
        num_logprobs=read.count("logprobs"),
        num_prompt_logprobs=read.count("prompt_logprobs"),
        request_class=read.request_class(),
        tenant=read.text("tenant"),
        session=read.text("session"),
        cache_salt=read.text("cache_salt"),
        joins_events=True,
    )
    goals = {name: read.number(name) for name in ("ttft_ms", "tpot_ms", "jct_ms", "tbt_ms")}
    if any(goal is not None for goal in goals.values()):
        request.service_level.CopyFrom(inference_pb2.ServiceLevel(**goals))
    read.number("timeout_s")  # judged here, used by the client
    return request


def set_prompt(request: inference_pb2.GenerateRequest, prompt: Prompt) -> None:
    """Raises: TypeError; InvalidRequest for a value that the field cannot hold."""
    if isinstance(prompt, str):
        request.text = _text("prompt", prompt)
    else:
        request.tokens.CopyFrom(inference_pb2.TokenPrompt(ids=_token_ids("prompt", prompt)))


def chat_prompt(messages: Messages) -> inference_pb2.ChatPrompt:
    """Raises: TypeError; InvalidRequest for a value that the field cannot hold."""
    found = _iterated("messages", "ChatMessage or mappings", messages)
    return inference_pb2.ChatPrompt(messages=[_chat_message(message) for message in found])


def text_prompt(prompt: str) -> str:
    """The prompt, if it is text that protobuf can carry."""
    return _text("prompt", prompt)


def _chat_message(message: object) -> inference_pb2.ChatMessage:
    if isinstance(message, ChatMessage):
        role, content = message.role, message.content
    elif isinstance(message, Mapping):
        if message.keys() != {"role", "content"}:
            raise _invalid("messages", "each message has exactly a role and a content")
        role, content = message["role"], message["content"]
    else:
        raise _wrong_type("messages", "ChatMessage or mappings", message)
    return inference_pb2.ChatMessage(
        role=_text("messages.role", role), content=_text("messages.content", content)
    )


def _integer(name: str, value: object, lowest: int, highest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise _wrong_type(name, "an integer", value)
    number = int(value)
    if not lowest <= number <= highest:
        raise _invalid(name, f"{number} is outside {lowest} to {highest}")
    return number


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _wrong_type(name, "a number", value)
    return float(value)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong_type(name, "a string", value)
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _invalid(name, "has unpaired surrogates; pass valid Unicode") from None
    return value


def _token_ids(name: str, value: object) -> list[int]:
    found = _iterated(name, "token ids", value)
    return [_integer(name, item, 0, 2**32 - 1) for item in found]


def _iterated(name: str, what: str, value: object) -> Iterable[object]:
    if isinstance(value, str | bytes | bytearray | Mapping) or not isinstance(value, Iterable):
        raise _wrong_type(name, f"a sequence of {what}", value)
    return value


def _wrong_type(name: str, wanted: str, value: object) -> TypeError:
    return TypeError(f"{name} must be {wanted}, not {type(value).__name__}")


def _invalid(name: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: {problem}", gpu_work_spent=False)


# --- protobuf to results ----------------------------------------------------------------------


def mirrored(result_class: "type[D]", message: Message, **overrides: object) -> "D":
    """A result whose fields have the names of the message's; repeated ones become tuples."""
    values: dict[str, object] = {}
    for field in fields(result_class):
        if field.name in overrides:
            values[field.name] = overrides[field.name]
        else:
            value = getattr(message, field.name)
            values[field.name] = value if isinstance(value, str | int | float) else tuple(value)
    return result_class(**values)


def events_from(response: inference_pb2.GenerateResponse) -> Iterator[Accepted | Event]:
    """The events of a message in order; none of a kind that a later version may add."""
    for part in (response, *response.following):
        event = event_from(part)
        if event is not None:
            yield event


def event_from(response: inference_pb2.GenerateResponse) -> Accepted | Event | None:
    """A message's own event; None for a kind that a later version may add."""
    match response.WhichOneof("event"):
        case "accepted":
            return mirrored(Accepted, response.accepted)
        case "delta":
            return _delta(response.delta)
        case "finished":
            return _finished(response.finished)
        case "prompt_logprobs":
            return _prompt_logprobs(response.prompt_logprobs)
        case _:
            return None


def model_info(message: inference_pb2.GetModelInfoResponse) -> ModelInfo:
    sampling = message.default_sampling
    defaults = SamplingDefaults(
        temperature=sampling.temperature if sampling.HasField("temperature") else None,
        top_k=sampling.top_k if sampling.HasField("top_k") else None,
        top_p=sampling.top_p if sampling.HasField("top_p") else None,
        min_p=sampling.min_p if sampling.HasField("min_p") else None,
        repetition_penalty=(
            sampling.repetition_penalty if sampling.HasField("repetition_penalty") else None
        ),
    )
    return mirrored(ModelInfo, message, default_sampling=defaults)


def _delta(delta: inference_pb2.Delta) -> Delta:
    return Delta(
        index=delta.index,
        first_token_index=delta.first_token_index,
        token_ids=tuple(delta.token_ids),
        text=delta.text,
        logprobs=_token_logprobs(delta.logprobs),
    )


def _prompt_logprobs(message: inference_pb2.PromptLogprobs) -> PromptLogprobs:
    return PromptLogprobs(message.first_token_index, _token_logprobs(message.logprobs))


def _token_logprobs(tokens: Iterable[inference_pb2.TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(
            logprob=token.logprob, top=tuple(mirrored(TopLogprob, top) for top in token.top)
        )
        for token in tokens
    )


def _finished(finished: inference_pb2.ChoiceFinished) -> Finished:
    matched_stop: str | int | None = None
    match finished.WhichOneof("matched"):
        case "matched_string":
            matched_stop = finished.matched_string
        case "matched_token_id":
            matched_stop = finished.matched_token_id
    timings = finished.timings
    tpot_ms = timings.tpot_ms if timings.HasField("tpot_ms") else None
    return Finished(
        index=finished.index,
        finish_reason=_FINISH_REASONS.get(finished.finish_reason, FinishReason.OTHER),
        matched_stop=matched_stop,
        usage=mirrored(Usage, finished.usage),
        timings=mirrored(Timings, timings, tpot_ms=tpot_ms),
    )
