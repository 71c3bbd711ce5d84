"""Logprobs of tokens and of their likeliest alternatives, from the raw logits.

The model's own distribution: before bans, biases, penalties, temperature and cuts.
"""

from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.to_device import to_device
from scheduling.sampling import PromptLogprobs, TokenLogprobs

Int64Array = npt.NDArray[np.int64]
RowLogprobs: TypeAlias = tuple[TokenLogprobs | None, ...]

# num_logprobs of a sequence that asked for none.
NO_LOGPROBS = -1
# Logits of prompt tokens that exist at one time: 64 MiB of float32, and what sorting them takes.
_MAX_PROMPT_LOGITS = 1 << 24
_MAX_PROMPT_ROWS = 256


@dataclass(frozen=True, slots=True)
class OrderedLogprobs:
    """Those of a batch's rows, on the device."""

    # [rows of the batch]; NO_LOGPROBS where none are wanted.
    num_logprobs: Int64Array
    # Of the rows that want some: [n], and [n, most alternatives] twice.
    tensors: tuple[Tensor, Tensor, Tensor]

    def read(self, chosen: Tensor, top_ids: Tensor, top_scores: Tensor) -> "RowLogprobs":
        """One entry a row, None where the row wants none; of `tensors`, on the host."""
        rows = np.flatnonzero(self.num_logprobs != NO_LOGPROBS)
        listed = zip(top_ids.tolist(), top_scores.tolist(), strict=True)
        by_row: list[TokenLogprobs | None] = [None] * len(self.num_logprobs)
        for row, logprob, (ids, values) in zip(rows.tolist(), chosen.tolist(), listed, strict=True):
            wanted = int(self.num_logprobs[row])
            top = tuple(zip(ids[:wanted], values[:wanted], strict=True))
            by_row[row] = TokenLogprobs(logprob, top)
        return tuple(by_row)


def order_logprobs(
    logits: Tensor, token_ids: Tensor, num_logprobs: Int64Array
) -> OrderedLogprobs | None:
    """None where no row wants any. Nothing is waited for.

    Shapes: logits [rows, vocab_size] float32; token_ids [rows] int64; num_logprobs [rows].
    """
    rows = np.flatnonzero(num_logprobs != NO_LOGPROBS)
    if not len(rows):
        return None
    wanting = to_device(rows, logits.device)
    scores = _logprobs(logits.index_select(0, wanting))
    drawn = token_ids.index_select(0, wanting)
    chosen = scores.gather(1, drawn.unsqueeze(1)).squeeze(1)
    return OrderedLogprobs(num_logprobs, (chosen, *top_tokens(scores, int(num_logprobs.max()))))


class PromptScorer:
    """Logprobs of prompt tokens, a bounded number of logits at a time."""

    def __init__(
        self,
        logits_of: Callable[[Tensor], Tensor],
        vocab_size: int,
        max_logits: int = _MAX_PROMPT_LOGITS,
    ) -> None:
        """`logits_of` makes [n, vocab_size] float32 of hidden states [n, hidden_size]."""
        self._logits_of = logits_of
        self._num_rows = max(1, min(_MAX_PROMPT_ROWS, max_logits // vocab_size))

    def score(
        self, hidden: Tensor, token_ids: Tensor, first_token_index: int, num_top: int
    ) -> tuple[PromptLogprobs, ...] | None:
        """Each token given the hidden state before it; None where any logits are not finite.

        Shapes: hidden [n, hidden_size]; token_ids [n] int64, at [first_token_index, ...) of the
            prompt.
        """
        pieces: list[PromptLogprobs] = []
        is_finite = True
        for start in range(0, len(token_ids), self._num_rows):
            rows = slice(start, start + self._num_rows)
            logits = self._logits_of(hidden[rows])
            if not bool(torch.isfinite(logits.amax(-1)).all()):
                # The rest is asked for all the same: other ranks compute their share of it.
                is_finite = False
                continue
            scores = _logprobs(logits)
            top_ids, top_scores = top_tokens(scores, num_top)
            pieces.append(
                PromptLogprobs(
                    first_token_index + start,
                    _packed(scores.gather(1, token_ids[rows].unsqueeze(1))),
                    array("I", top_ids.int().cpu().numpy().tobytes()),
                    _packed(top_scores),
                )
            )
        return tuple(pieces) if is_finite else None

    def follow(self, hidden: Tensor) -> None:
        """This rank's share of what `score` asks for at the first one."""
        for start in range(0, hidden.shape[0], self._num_rows):
            self._logits_of(hidden[start : start + self._num_rows])


def top_tokens(scores: Tensor, num_top: int) -> tuple[Tensor, Tensor]:
    """Ids and scores of the likeliest tokens of each row, the lower id first on a tie.

    Shapes: scores [rows, vocab_size] float32 without NaN; results [rows, min(num_top, vocab_size)].
    """
    vocab_size = scores.shape[1]
    # Floats of equal sign order like their bits. With the id below them no two keys are equal, so
    # topk, which leaves ties open, has one answer; sorting the whole vocabulary would cost more.
    bits = scores.add(0.0).view(torch.int32).long()
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    id_rank = torch.arange(vocab_size - 1, -1, -1, device=scores.device)
    keys = ordered * (1 << 32) + id_rank
    best = keys.topk(min(num_top, vocab_size), dim=-1).values
    token_ids = vocab_size - 1 - (best & 0xFFFFFFFF)
    return token_ids, scores.gather(1, token_ids)


def _logprobs(logits: Tensor) -> Tensor:
    # A logit of minus infinity has a logprob that no JSON and no peer would take.
    return torch.log_softmax(logits, dim=-1).clamp_(min=torch.finfo(torch.float32).min)


def _packed(values: Tensor) -> "array[float]":
    return array("f", values.cpu().numpy().tobytes())
