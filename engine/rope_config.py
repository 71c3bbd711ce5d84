"""How a model turns positions into rotations, resolved: nothing here depends on a sequence."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LinearRopeScaling:
    """Positions are divided by `factor`."""

    factor: float


@dataclass(frozen=True, slots=True)
class Llama3RopeScaling:
    """Low frequencies are divided by `factor`, high ones kept, those between interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    # The context length of the model before it was stretched, in tokens.
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True)
class YarnRopeScaling:
    """As Llama 3's, but the ramp runs over the index of the frequency; attention is sharpened."""

    factor: float
    original_max_position_embeddings: int
    # Cosines and sines are multiplied by it.
    attention_factor: float
    # Frequencies with more turns than beta_fast in the original context are kept, those with
    # fewer than beta_slow divided.
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    # Whether the ends of the ramp are rounded outwards to whole indices.
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class LongRopeScaling:
    """Each frequency is divided by a factor of its own, found by search (Phi-3)."""

    # [rotary_dim / 2]
    factors: tuple[float, ...]
    # Cosines and sines are multiplied by it.
    attention_factor: float


RopeScaling = LinearRopeScaling | Llama3RopeScaling | YarnRopeScaling | LongRopeScaling


@dataclass(frozen=True, slots=True)
class Rope:
    """The rotation of one kind of layer."""

    theta: float
    # The first numbers of each head, which are rotated; the others are left alone.
    rotary_dim: int
    scaling: RopeScaling | None = None
