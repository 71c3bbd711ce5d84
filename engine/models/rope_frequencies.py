"""How fast each pair of a head turns: the frequencies of rotary positions, and their scalings.

Sources: RoFormer, Su et al. 2021; linear scaling as published with Llama 2 Long; YaRN, Peng et al.
2023; LongRoPE, Ding et al. 2024; Llama 3.1's as published with the model.
"""

import math

import torch
from torch import Tensor

from engine.rope_config import (
    LinearRopeScaling,
    Llama3RopeScaling,
    LongRopeScaling,
    Rope,
    YarnRopeScaling,
)


def inverse_frequencies(rope: Rope) -> Tensor:
    """[rotary_dim / 2] radians per position, float32."""
    dim = rope.rotary_dim
    powers = rope.theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    match rope.scaling:
        case None:
            return 1.0 / powers
        case LinearRopeScaling(factor):
            return 1.0 / powers / factor
        case Llama3RopeScaling() as scaling:
            return _stretched(1.0 / powers, scaling)
        case YarnRopeScaling() as scaling:
            return _ramped(powers, rope, scaling)
        case LongRopeScaling(factors):
            return 1.0 / (torch.tensor(factors) * powers)


def attention_factor(rope: Rope) -> float:
    """What cosines and sines are multiplied by."""
    if isinstance(rope.scaling, YarnRopeScaling | LongRopeScaling):
        return rope.scaling.attention_factor
    return 1.0


def _stretched(frequencies: Tensor, scaling: Llama3RopeScaling) -> Tensor:
    """Frequencies with few turns in the original context are slowed down, the others kept."""
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept_fraction = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    slowed = frequencies / scaling.factor
    return (1 - kept_fraction) * slowed + kept_fraction * frequencies


def _ramped(powers: Tensor, rope: Rope, scaling: YarnRopeScaling) -> Tensor:
    """The fast frequencies are kept, the slow ones divided, between them goes a ramp."""
    num_pairs = rope.rotary_dim // 2
    first = _index_with_turns(scaling.beta_fast, rope, scaling)
    last = _index_with_turns(scaling.beta_slow, rope, scaling)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.rotary_dim - 1)
    if first == last:
        last += 0.001
    indices = torch.arange(num_pairs, dtype=torch.float32)
    kept_fraction = 1 - ((indices - first) / (last - first)).clamp(0, 1)
    slowed = 1.0 / (scaling.factor * powers)
    return slowed * (1 - kept_fraction) + (1.0 / powers) * kept_fraction


def _index_with_turns(turns: float, rope: Rope, scaling: YarnRopeScaling) -> float:
    """Where in the table, as a fraction of an index, a pair turns so often in the old context."""
    positions_per_radian = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
    return rope.rotary_dim * math.log(positions_per_radian) / (2 * math.log(rope.theta))
