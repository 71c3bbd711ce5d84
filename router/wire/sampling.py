"""What a caller wishes of sampling and of the end of an answer, checked, and its defaults.

Limits are those of vLLM and of OpenAI's API, where they have any.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from engine.config_json import GenerationDefaults
from engine.model_config import ModelShape
from router.served_model import ServedModel
from scheduling.errors import InvalidRequest
from scheduling.sampling import SamplingParams
from tandemserve.api.v1 import inference_pb2 as pb

Number = TypeVar("Number", int, float)

MAX_LOGPROBS = 20
_MAX_TEMPERATURE = 100.0
_MAX_PENALTY = 2.0
_MAX_BIASES = 1024
_MAX_BIAS = 100.0
_MAX_STOP_STRINGS = 16
_MAX_STOP_CHARS = 256
_MAX_STOP_TOKENS = 256


@dataclass(frozen=True, slots=True)
class SamplingWishes:
    """What the caller set; None takes the model's default."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    # The model has no defaults for these.
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    num_logprobs: int | None = None
    num_prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class StopWishes:
    """When the answer shall end; None leaves it to context and workers."""

    max_tokens: int | None = None
    min_tokens: int = 0
    strings: tuple[str, ...] = ()
    token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def end_token_ids(self, config: ModelShape) -> tuple[int, ...]:
        """Tokens that end the answer, none twice."""
        own = () if self.ignore_eos else config.eos_token_ids
        return tuple(dict.fromkeys((*own, *self.token_ids)))


def default_sampling(defaults: GenerationDefaults) -> SamplingParams:
    """What a request that wishes for nothing gets: the model's own, else what changes nothing."""
    return SamplingParams(
        temperature=_or(defaults.temperature, 1.0),
        top_k=_or(defaults.top_k, 0),
        top_p=_or(defaults.top_p, 1.0),
        min_p=_or(defaults.min_p, 0.0),
        repetition_penalty=_or(defaults.repetition_penalty, 1.0),
    )


def resolve_sampling(
    wishes: SamplingWishes, stop: StopWishes, model: ServedModel, new_seed: int
) -> SamplingParams:
    """Defaults where the caller wished for nothing.

    Raises: InvalidRequest for token ids that the model does not have, and where none can be drawn.
    """
    vocab_size = model.config.vocab_size
    biased = [token_id for token_id, _ in wishes.logit_bias]
    for field, token_ids in (("stop_token_ids", stop.token_ids), ("logit_bias", biased)):
        if (largest := max(token_ids, default=0)) >= vocab_size:
            problem = f"id {largest} is not in the vocabulary; use 0 to {vocab_size - 1}"
            raise InvalidRequest(field, problem)
    end_token_ids = stop.end_token_ids(model.config) if stop.min_tokens else ()
    if len(end_token_ids) == vocab_size:
        problem = "name every token there is, and min_tokens forbids them; leave some out"
        raise InvalidRequest("stop_token_ids", problem)
    standard = default_sampling(model.defaults)
    return SamplingParams(
        temperature=_or(wishes.temperature, standard.temperature),
        top_k=_or(wishes.top_k, standard.top_k),
        top_p=_or(wishes.top_p, standard.top_p),
        seed=_or(wishes.seed, new_seed),
        num_logprobs=wishes.num_logprobs,
        min_p=_or(wishes.min_p, standard.min_p),
        repetition_penalty=_or(wishes.repetition_penalty, standard.repetition_penalty),
        presence_penalty=wishes.presence_penalty,
        frequency_penalty=wishes.frequency_penalty,
        logit_bias=wishes.logit_bias,
        min_tokens=stop.min_tokens,
        end_token_ids=end_token_ids,
        num_prompt_logprobs=wishes.num_prompt_logprobs,
    )


def sampling_wishes(request: pb.GenerateRequest) -> SamplingWishes:
    """Raises: InvalidRequest, naming the field and the legal values."""
    params = request.sampling
    return SamplingWishes(
        temperature=_number(params, "temperature", _TEMPERATURES),
        top_k=_top_k(params),
        top_p=_number(params, "top_p", _TOP_P),
        seed=params.seed if params.HasField("seed") else None,
        min_p=_number(params, "min_p", _MIN_P),
        repetition_penalty=_number(params, "repetition_penalty", _ABOVE_0),
        presence_penalty=_number(params, "presence_penalty", _PENALTIES) or 0.0,
        frequency_penalty=_number(params, "frequency_penalty", _PENALTIES) or 0.0,
        logit_bias=_logit_bias(params.logit_bias),
        num_logprobs=_num_logprobs(request, "num_logprobs"),
        num_prompt_logprobs=_num_logprobs(request, "num_prompt_logprobs"),
    )


def stop_wishes(stop: pb.StopConditions) -> StopWishes:
    """Raises: InvalidRequest, naming the field and the legal values."""
    max_tokens = stop.max_tokens if stop.HasField("max_tokens") else None
    if max_tokens == 0:
        raise InvalidRequest("max_tokens", "is 0; ask for at least 1 token")
    if max_tokens is not None and stop.min_tokens > max_tokens:
        problem = f"{stop.min_tokens} is above max_tokens ({max_tokens}); raise that or lower this"
        raise InvalidRequest("min_tokens", problem)
    if len(stop.token_ids) > _MAX_STOP_TOKENS:
        problem = f"{len(stop.token_ids)} stop tokens; send at most {_MAX_STOP_TOKENS}"
        raise InvalidRequest("stop_token_ids", problem)
    return StopWishes(
        max_tokens=max_tokens,
        min_tokens=stop.min_tokens,
        strings=_stop_strings(stop.strings),
        token_ids=tuple(stop.token_ids),
        ignore_eos=stop.ignore_eos,
    )


@dataclass(frozen=True, slots=True)
class _Range:
    """Finite numbers from low to high; low itself is out where the range is open."""

    low: float
    high: float
    remark: str = ""
    is_open: bool = False

    def holds(self, value: float) -> bool:
        """NaN and infinity are nowhere."""
        is_low = value <= self.low if self.is_open else value < self.low
        return math.isfinite(value) and not is_low and value <= self.high

    @property
    def words(self) -> str:
        """What to use instead."""
        if self.high == math.inf:
            return f"use a finite number above {self.low:g}{self.remark}"
        first = "above " if self.is_open else ""
        return f"use {first}{self.low:g} to {self.high:g}{self.remark}"


_TEMPERATURES = _Range(0.0, _MAX_TEMPERATURE, " (0 is greedy)")
_TOP_P = _Range(0.0, 1.0, is_open=True)
_MIN_P = _Range(0.0, 1.0, " (0 keeps all tokens)")
_PENALTIES = _Range(-_MAX_PENALTY, _MAX_PENALTY, " (0 changes nothing)")
_ABOVE_0 = _Range(0.0, math.inf, " (1 changes nothing)", is_open=True)


def _number(params: pb.SamplingParams, field: str, legal: _Range) -> float | None:
    if not params.HasField(field):
        return None
    value: float = getattr(params, field)
    if not legal.holds(value):
        raise InvalidRequest(field, f"{value:g} is out of range; {legal.words}")
    return value


def _top_k(params: pb.SamplingParams) -> int | None:
    if not params.HasField("top_k"):
        return None
    if params.top_k < 0:
        raise InvalidRequest("top_k", f"{params.top_k} is negative; use 0 (all tokens) or more")
    return params.top_k


def _num_logprobs(request: pb.GenerateRequest, field: str) -> int | None:
    if not request.HasField(field):
        return None
    wanted: int = getattr(request, field)
    if wanted > MAX_LOGPROBS:
        raise InvalidRequest(field, f"{wanted}; ask for at most {MAX_LOGPROBS}")
    return wanted


def _logit_bias(biases: Mapping[int, float]) -> tuple[tuple[int, float], ...]:
    if len(biases) > _MAX_BIASES:
        raise InvalidRequest("logit_bias", f"{len(biases)} tokens; send at most {_MAX_BIASES}")
    for token_id, bias in biases.items():
        if not -_MAX_BIAS <= bias <= _MAX_BIAS:
            legal = f"use {-_MAX_BIAS:g} to {_MAX_BIAS:g}"
            raise InvalidRequest("logit_bias", f"{bias:g} for token {token_id}; {legal}")
    return tuple(sorted(biases.items()))


def _stop_strings(strings: Sequence[str]) -> tuple[str, ...]:
    if len(strings) > _MAX_STOP_STRINGS:
        problem = f"{len(strings)} stop strings; send at most {_MAX_STOP_STRINGS}"
        raise InvalidRequest("stop", problem)
    for string in strings:
        if not 1 <= len(string) <= _MAX_STOP_CHARS:
            legal = f"use 1 to {_MAX_STOP_CHARS} characters"
            raise InvalidRequest("stop", f"a stop string has {len(string)} characters; {legal}")
    return tuple(strings)


def _or(value: Number | None, default: Number) -> Number:
    return default if value is None else value
