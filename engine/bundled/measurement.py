"""Measures a trained network on the passages it has not seen."""

import math
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from engine.bundled.network import TrainingNetwork
from engine.bundled.token_stream import passage_tokens

_SHORT, _LONG, _QUARTER = 512, 2048, 512


@dataclass(frozen=True, slots=True)
class Measurement:
    """Mean loss in nats per token, and what it means per character of text."""

    validation_loss: float
    bits_per_character: float
    # In rows of 2048 tokens: the first and the last quarter. Equal or falling when every position
    # is usable. None when the text is too short for one such row.
    loss_first_quarter: float | None
    loss_last_quarter: float | None


@torch.no_grad()
def measure(
    network: TrainingNetwork, tokenizer: Tokenizer, passages: tuple[str, ...]
) -> Measurement:
    """Loss on `passages` with the weights rounded to bfloat16, as they are saved."""
    rounded = TrainingNetwork(network.shape)
    rounded.load_state_dict(
        {name: value.to(torch.bfloat16).float() for name, value in network.state_dict().items()}
    )
    encodings = tokenizer.encode_batch(list(passages), add_special_tokens=False)
    ids = [token for each in encodings for token in passage_tokens(tuple(each.ids))]
    tokens = torch.tensor(ids, dtype=torch.int64)
    short = _losses_by_row(rounded, tokens, min(_SHORT, len(ids) - 1))
    loss = short.mean().item()
    num_characters = sum(len(passage) for passage in passages)
    first = last = None
    if len(ids) > _LONG and network.shape.max_positions >= _LONG:
        long = _losses_by_row(rounded, tokens, _LONG)
        first, last = long[:, :_QUARTER].mean().item(), long[:, -_QUARTER:].mean().item()
    return Measurement(loss, loss * len(ids) / num_characters / math.log(2), first, last)


def _losses_by_row(network: TrainingNetwork, tokens: Tensor, length: int) -> Tensor:
    """Losses of whole rows. Shape: [num_rows, length]."""
    rows = tokens.unfold(0, length + 1, length)
    return torch.stack([network.losses(row[None]) for row in rows])
