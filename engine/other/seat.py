"""Where a network of the transformers library meets our attention.

The library lets a name stand for a function that all attention modules call. Ours passes queries,
keys and values on to the step that is computed, and refuses by name whatever it would not compute.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from engine.attention.backend import StepAttention
from engine.model_config import LayerAttention

ATTENTION_NAME = "tandem_paged"
# Under which modules find their seat.
_ATTRIBUTE = "_tandem_seat"
# What modules pass on that says nothing about how they attend.
_SAYS_NOTHING = frozenset(
    {"position_ids", "cache_position", "use_cache", "position_embeddings", "return_dict"}
)


class CannotAttend(ValueError):
    """A module asks for something that our attention does not compute."""


@dataclass(frozen=True, slots=True)
class SeenLayer:
    """One attention module, as it called."""

    module: torch.nn.Module
    num_heads: int
    num_kv_heads: int
    head_dim: int
    attention: LayerAttention


class _Attend(Protocol):
    def __call__(self, seen: SeenLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor: ...


class Seat:
    """Of one network; its modules call nobody else. One pass at a time."""

    def __init__(self, network: torch.nn.Module) -> None:
        _register()
        for module in network.modules():
            object.__setattr__(module, _ATTRIBUTE, self)
        self._attend: _Attend | None = None

    @contextmanager
    def tracing(self) -> Iterator[list[SeenLayer]]:
        """Modules that call are listed, in their order; each token sees itself only."""
        seen_layers: list[SeenLayer] = []

        def attend(seen: SeenLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            seen_layers.append(seen)
            return value.repeat_interleave(seen.num_heads // seen.num_kv_heads, 1)

        with self._seated(attend):
            yield seen_layers

    @contextmanager
    def over(self, step: StepAttention, index_of: dict[int, int], num_rows: int) -> Iterator[None]:
        """Modules attend in a step of `num_rows` tokens; what is behind these is padding.

        `index_of` is the layer of each module, by `id`.
        """

        def attend(seen: SeenLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            # Backends compute in float32 whatever the network does.
            rows = (part[:num_rows].float().contiguous() for part in (query, key, value))
            attended = query.new_zeros(query.shape)
            attended[:num_rows] = step.attend(index_of[id(seen.module)], *rows).to(query.dtype)
            return attended

        with self._seated(attend):
            yield

    @contextmanager
    def _seated(self, attend: _Attend) -> Iterator[None]:
        self._attend = attend
        try:
            yield
        finally:
            self._attend = None

    def take(self, seen: SeenLayer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Shapes: [num_tokens, heads, head_dim], key and value with heads of their own."""
        if self._attend is None:
            raise RuntimeError("a module attends while no step is computed")
        return self._attend(seen, query, key, value)


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, _call)


def _call(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What a module calls. Shapes: query [1, num_heads, num_tokens, head_dim], key and value alike
    with their heads; result [1, num_tokens, num_heads, head_dim]."""
    _refuse(module, attention_mask, others)
    batch, num_heads, _, head_dim = query.shape
    if batch != 1 or value.shape != key.shape or key.shape[-1] != head_dim:
        raise CannotAttend("values of another width than keys")
    scale = head_dim**-0.5 if scaling is None else float(scaling)
    attention = LayerAttention(scale, sliding_window, softcap)
    seen = SeenLayer(module, num_heads, key.shape[1], head_dim, attention)
    seat: Seat = getattr(module, _ATTRIBUTE)
    rows = (part[0].transpose(0, 1) for part in (query, key, value))
    return seat.take(seen, *rows).unsqueeze(0), None


def _refuse(module: torch.nn.Module, mask: Tensor | None, others: dict[str, Any]) -> None:
    """Raises: CannotAttend."""
    is_causal = others.pop("is_causal", None)
    if not (getattr(module, "is_causal", True) if is_causal is None else is_causal):
        raise CannotAttend("attention to tokens that follow")
    if mask is not None:
        raise CannotAttend("a mask of its own")
    for name, value in others.items():
        # A flag for what the module returns beside the result starts with output_.
        says_nothing = name in _SAYS_NOTHING or name.startswith("output_")
        if not says_nothing and value is not None and value is not False:
            raise CannotAttend(f"attention with {name}")
