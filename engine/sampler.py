"""Draws the next token of each row of logits.

A row's token depends on its logits, its parameters, its seed and its output index, never on the
other rows: each row follows the path that its own parameters choose, and the arithmetic along a row
is the same for any number of rows.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.counter_random import UintArray, uniforms
from scheduling.sampling import TokenLogprobs

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

# num_logprobs of a sequence that asked for none.
NO_LOGPROBS = -1


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """Parameters of the rows, one entry a row; the fields are those of SamplingParams."""

    temperature: FloatArray
    top_k: Int64Array
    top_p: FloatArray
    seed: UintArray
    # Index of the token to draw among the sequence's output tokens.
    output_index: UintArray
    # NO_LOGPROBS where none are wanted.
    num_logprobs: Int64Array


@dataclass(frozen=True, slots=True)
class SampledBatch:
    """One token a row, and where the logits were not numbers."""

    # [rows]
    token_ids: Int64Array
    # [rows] false where the logits hold a NaN or a positive infinity: the token means nothing.
    is_finite: npt.NDArray[np.bool_]
    # One entry a row where any row wants logprobs, else empty.
    logprobs: tuple[TokenLogprobs | None, ...]


def sample(logits: Tensor, batch: SamplingBatch) -> SampledBatch:
    """Draw from logits [rows, vocab_size] float32, which stay as they are."""
    highest, likeliest = logits.max(dim=-1)
    token_ids = likeliest.cpu().numpy()
    is_finite = np.isfinite(highest.cpu().numpy())
    is_drawn = (batch.temperature > 0) & is_finite
    if is_drawn.any():
        is_cut = is_drawn & ((batch.top_k > 0) | (batch.top_p < 1.0))
        for rows, draw in ((is_drawn & ~is_cut, _draw_from_all), (is_cut, _draw_from_kept)):
            picked = np.flatnonzero(rows)
            if len(picked):
                token_ids[picked] = draw(_scaled(logits, picked, batch), picked, batch)
    logprobs: tuple[TokenLogprobs | None, ...] = ()
    if (batch.num_logprobs != NO_LOGPROBS).any():
        logprobs = _logprobs(logits, token_ids, batch.num_logprobs)
    return SampledBatch(token_ids, is_finite, logprobs)


def kept_tokens(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """What the cuts keep: (token ids by falling probability, their probabilities before the cut).

    A cut token has probability 0; the first is always kept. Equal scores rank by lower id.
    Shapes: scaled [rows, vocab_size] float64, highest 0; top_k [rows, 1] int64, 0 keeps all;
        top_p [rows, 1] float64; results [rows, vocab_size].
    """
    scores, order = torch.sort(scaled, dim=-1, descending=True, stable=True)
    weights = scores.exp()
    rank = torch.arange(scaled.shape[-1], device=scaled.device)
    weights.masked_fill_((rank >= top_k) & (top_k > 0), 0.0)
    weights.div_(weights.sum(-1, keepdim=True))
    before = weights.cumsum(-1).sub_(weights)
    # Rounding brings the sum to 1 before the end: a top_p of 1 must still keep everything.
    weights.masked_fill_((before >= top_p) & (rank > 0) & (top_p < 1.0), 0.0)
    return order, weights


def _scaled(logits: Tensor, rows: Int64Array, batch: SamplingBatch) -> Tensor:
    """[len(rows), vocab_size] float64: logits over temperature, moved so that the highest is 0."""
    picked = logits.index_select(0, torch.from_numpy(rows).to(logits.device)).double()
    picked.sub_(picked.amax(-1, keepdim=True))
    return picked.div_(_column(batch.temperature[rows], logits.device))


def _draw_from_all(scaled: Tensor, rows: Int64Array, batch: SamplingBatch) -> Int64Array:
    return _invert(scaled.exp_(), rows, batch)


def _draw_from_kept(scaled: Tensor, rows: Int64Array, batch: SamplingBatch) -> Int64Array:
    order, weights = kept_tokens(
        scaled, _column(batch.top_k[rows], scaled.device), _column(batch.top_p[rows], scaled.device)
    )
    places = torch.from_numpy(_invert(weights, rows, batch)).to(scaled.device)
    chosen: Int64Array = order.gather(1, places.unsqueeze(1)).squeeze(1).cpu().numpy()
    return chosen


def _invert(weights: Tensor, rows: Int64Array, batch: SamplingBatch) -> Int64Array:
    """The place in each row where the cumulated weight passes the row's random number."""
    cumulated = weights.cumsum(-1)
    random = uniforms(batch.seed[rows], batch.output_index[rows])
    target = cumulated[:, -1:] * _column(random, weights.device)
    # Rounding can bring the target up to the total: the last place with any weight is meant then.
    last = (cumulated < cumulated[:, -1:]).sum(-1)
    places = torch.minimum((cumulated <= target).sum(-1), last)
    found: Int64Array = places.cpu().numpy()
    return found


def _column(values: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    return torch.from_numpy(values).to(device).unsqueeze(1)


def _logprobs(
    logits: Tensor, token_ids: Int64Array, num_logprobs: Int64Array
) -> tuple[TokenLogprobs | None, ...]:
    """Logprobs of the rows that want them, from the raw logits."""
    rows = np.flatnonzero(num_logprobs != NO_LOGPROBS)
    scores = torch.log_softmax(
        logits.index_select(0, torch.from_numpy(rows).to(logits.device)), dim=-1
    )
    chosen = scores.gather(1, _column(token_ids[rows], scores.device)).squeeze(1).tolist()
    most = min(int(num_logprobs.max()), scores.shape[-1])
    # A stable sort rather than topk, which leaves open what happens at a tie.
    top_scores, top_ids = torch.sort(scores, dim=-1, descending=True, stable=True)
    listed = zip(top_ids[:, :most].tolist(), top_scores[:, :most].tolist(), strict=True)
    by_row: list[TokenLogprobs | None] = [None] * len(num_logprobs)
    for row, logprob, (ids, values) in zip(rows.tolist(), chosen, listed, strict=True):
        wanted = int(num_logprobs[row])
        by_row[row] = TokenLogprobs(logprob, tuple(zip(ids[:wanted], values[:wanted], strict=True)))
    return tuple(by_row)
