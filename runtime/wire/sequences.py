"""Sequences, sampling parameters and logprobs between router and worker.

The router refuses a caller's bad values in words (router/wire/). What is checked here is what
could harm a worker, as a peer may be of another version.
"""

import math
from array import array
from typing import Any, Final

from runtime.wire.values import (
    MAX_INT32,
    ProtocolError,
    checked_count,
    checked_float,
    checked_text,
    checked_token_ids,
    finite_or_none,
)
from scheduling.messages import SequenceSpec
from scheduling.sampling import PromptLogprobs, SamplingParams, StopParams, TokenLogprobs
from tandemserve.internal.v1 import sequence_pb2
from tandemserve.internal.v1 import worker_pb2 as pb

MAX_LOGPROBS: Final = 20
MAX_STOP_STRINGS: Final = 64
MAX_BIASES: Final = 1024
_TOKENS_AT_ONCE: Final = 16_384


def sequence_to_proto(sequence: SequenceSpec) -> sequence_pb2.SequenceSpec:
    """All but the prompt: see `write_prompt`.

    Sampling floats travel in 32 bits, as clients send them; what changes nothing, not at all.
    """
    sampling, stop = sequence.sampling, sequence.stop
    penalty = sampling.repetition_penalty
    return sequence_pb2.SequenceSpec(
        output_token_ids=sequence.output_token_ids,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=sampling.seed,
        num_logprobs=sampling.num_logprobs,
        num_prompt_logprobs=sampling.num_prompt_logprobs,
        repetition_penalty=None if penalty == 1.0 else penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        bias_token_ids=[token_id for token_id, _ in sampling.logit_bias],
        biases=[bias for _, bias in sampling.logit_bias],
        min_tokens=sampling.min_tokens,
        max_tokens=stop.max_tokens,
        stop_token_ids=stop.stop_token_ids,
        stop_strings=stop.stop_strings,
        cache_salt=sequence.cache_salt,
        tpot_s=finite_or_none(sequence.tpot_s),
        tbt_s=finite_or_none(sequence.tbt_s),
        num_predicted_tokens=sequence.num_predicted_tokens,
    )


def write_prompt(sequence: SequenceSpec, message: sequence_pb2.SequenceSpec) -> None:
    """The prompt, into the message that is sent."""
    # One call holds the interpreter until its end: no thread could do anything meanwhile.
    for start in range(0, len(sequence.prompt_token_ids), _TOKENS_AT_ONCE):
        piece = sequence.prompt_token_ids[start : start + _TOKENS_AT_ONCE]
        message.prompt_token_ids.extend(piece)


def sequence_from_proto(owner: Any) -> SequenceSpec:
    """Take the sequence out of a command that must carry one. Raises: ProtocolError."""
    if not owner.HasField("sequence"):
        raise ProtocolError("sequence", "is missing")
    message: sequence_pb2.SequenceSpec = owner.sequence
    if not message.prompt_token_ids:
        raise ProtocolError("sequence.prompt_token_ids", "is empty")
    if len(message.stop_strings) > MAX_STOP_STRINGS or not all(message.stop_strings):
        raise ProtocolError("sequence.stop_strings", f"more than {MAX_STOP_STRINGS}, or one empty")
    stop = StopParams(
        max_tokens=checked_count("sequence.max_tokens", message.max_tokens, least=1),
        stop_token_ids=checked_token_ids("sequence.stop_token_ids", message.stop_token_ids),
        stop_strings=tuple(message.stop_strings),
    )
    return SequenceSpec(
        prompt_token_ids=checked_token_ids("sequence.prompt_token_ids", message.prompt_token_ids),
        output_token_ids=checked_token_ids("sequence.output_token_ids", message.output_token_ids),
        sampling=_sampling_from_proto(message, stop),
        stop=stop,
        cache_salt=checked_text("sequence.cache_salt", message.cache_salt),
        tpot_s=_above_0("tpot_s", message.tpot_s) if message.HasField("tpot_s") else math.inf,
        tbt_s=_above_0("tbt_s", message.tbt_s) if message.HasField("tbt_s") else math.inf,
        num_predicted_tokens=checked_count(
            "sequence.num_predicted_tokens", message.num_predicted_tokens
        ),
    )


def _sampling_from_proto(message: sequence_pb2.SequenceSpec, stop: StopParams) -> SamplingParams:
    repetition_penalty = 1.0
    if message.HasField("repetition_penalty"):
        repetition_penalty = _above_0("repetition_penalty", message.repetition_penalty)
    min_tokens = checked_count("sequence.min_tokens", message.min_tokens)
    return SamplingParams(
        temperature=checked_float("sequence.temperature", message.temperature, least=0.0),
        top_k=checked_count("sequence.top_k", message.top_k),
        top_p=checked_float("sequence.top_p", _above_0("top_p", message.top_p), most=1.0),
        min_p=checked_float("sequence.min_p", message.min_p, least=0.0, most=1.0),
        seed=message.seed,
        num_logprobs=_num_logprobs(message, "num_logprobs"),
        repetition_penalty=repetition_penalty,
        presence_penalty=checked_float("sequence.presence_penalty", message.presence_penalty),
        frequency_penalty=checked_float("sequence.frequency_penalty", message.frequency_penalty),
        logit_bias=_logit_bias(message),
        min_tokens=min_tokens,
        end_token_ids=stop.stop_token_ids if min_tokens else (),
        num_prompt_logprobs=_num_logprobs(message, "num_prompt_logprobs"),
    )


def _num_logprobs(message: sequence_pb2.SequenceSpec, field: str) -> int | None:
    if not message.HasField(field):
        return None
    return checked_count(f"sequence.{field}", getattr(message, field), most=MAX_LOGPROBS)


def _above_0(field: str, value: float) -> float:
    if value <= 0.0:
        raise ProtocolError(f"sequence.{field}", f"must be above 0, is {value}")
    return checked_float(f"sequence.{field}", value)


def _logit_bias(message: sequence_pb2.SequenceSpec) -> tuple[tuple[int, float], ...]:
    token_ids = checked_token_ids("sequence.bias_token_ids", message.bias_token_ids)
    if len(message.biases) != len(token_ids):
        problem = f"{len(message.biases)} for {len(token_ids)} token ids"
        raise ProtocolError("sequence.biases", problem)
    checked_count("sequence.bias_token_ids", len(token_ids), most=MAX_BIASES)
    if len(set(token_ids)) != len(token_ids):
        raise ProtocolError("sequence.bias_token_ids", "names a token twice")
    biases = [checked_float("sequence.biases", bias) for bias in message.biases]
    return tuple(zip(token_ids, biases, strict=True))


def logprobs_to_proto(logprobs: TokenLogprobs) -> pb.TokenLogprobs:
    """The alternatives travel as two parallel lists."""
    return pb.TokenLogprobs(
        logprob=logprobs.logprob,
        top_token_ids=[token_id for token_id, _ in logprobs.top],
        top_logprobs=[logprob for _, logprob in logprobs.top],
    )


def logprobs_from_proto(message: pb.TokenLogprobs) -> TokenLogprobs:
    """Join the two lists again. Raises: ProtocolError."""
    token_ids = checked_token_ids("top_token_ids", message.top_token_ids)
    if len(token_ids) != len(message.top_logprobs):
        raise ProtocolError(
            "top_logprobs", f"{len(message.top_logprobs)} for {len(token_ids)} token ids"
        )
    checked_count("top_token_ids", len(token_ids), most=MAX_LOGPROBS)
    values = [checked_float("top_logprobs", value) for value in message.top_logprobs]
    return TokenLogprobs(
        logprob=checked_float("logprob", message.logprob),
        top=tuple(zip(token_ids, values, strict=True)),
    )


def prompt_logprobs_to_proto(logprobs: PromptLogprobs) -> pb.PromptLogprobs:
    """Packed, as they are."""
    return pb.PromptLogprobs(
        first_token_index=logprobs.first_token_index,
        logprobs=logprobs.logprobs,
        top_token_ids=logprobs.top_token_ids,
        top_logprobs=logprobs.top_logprobs,
    )


def prompt_logprobs_from_proto(message: pb.PromptLogprobs) -> PromptLogprobs:
    """Inverse of `prompt_logprobs_to_proto`. Raises: ProtocolError."""
    num_tokens, num_entries = len(message.logprobs), len(message.top_token_ids)
    if num_entries != len(message.top_logprobs):
        problem = f"{len(message.top_logprobs)} for {num_entries} token ids"
        raise ProtocolError("prompt.top_logprobs", problem)
    checked_count("prompt.logprobs", num_tokens, least=1)
    if num_entries % num_tokens or num_entries > num_tokens * MAX_LOGPROBS:
        problem = f"{num_entries} for {num_tokens} tokens"
        raise ProtocolError("prompt.top_token_ids", problem)
    for values in (message.logprobs, message.top_logprobs):
        # A NaN anywhere would make the sum one; no float32 overflows a double's sum.
        checked_float("prompt.logprobs", sum(values))
    return PromptLogprobs(
        first_token_index=checked_count(
            "prompt.first_token_index",
            message.first_token_index,
            least=1,
            most=MAX_INT32 - num_tokens,
        ),
        logprobs=array("f", message.logprobs),
        top_token_ids=array("I", checked_token_ids("prompt.top_token_ids", message.top_token_ids)),
        top_logprobs=array("f", message.top_logprobs),
    )
