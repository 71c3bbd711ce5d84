"""Draws the next token of each row of logits.

A row's token depends on its logits, its parameters, its seed and its output index, never on the
other rows: each row follows the path that its own parameters choose, and the arithmetic along a row
is the same for any number of rows. Nothing here waits for the device but `DrawnBatch.read`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.counter_random import UintArray, uniforms
from engine.logit_adjustments import Adjustments, FloatArray, Int64Array, adjust
from engine.logprobs import OrderedLogprobs, order_logprobs
from engine.to_device import to_device
from scheduling.sampling import TokenLogprobs


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """Parameters of the rows, one entry a row; the fields are those of SamplingParams."""

    temperature: FloatArray
    top_k: Int64Array
    top_p: FloatArray
    min_p: FloatArray
    seed: UintArray
    # Index of the token to draw among the sequence's output tokens.
    output_index: UintArray
    # NO_LOGPROBS where none are wanted.
    num_logprobs: Int64Array
    # None where no row wants any.
    adjustments: Adjustments | None = None


@dataclass(frozen=True, slots=True)
class SampledBatch:
    """One token a row, and where the logits were not numbers."""

    # [rows]
    token_ids: Int64Array
    # [rows] false where the logits hold a NaN or a positive infinity: the token means nothing.
    is_finite: npt.NDArray[np.bool_]
    # One entry a row where any row wants logprobs, else empty.
    logprobs: tuple[TokenLogprobs | None, ...]


@dataclass(frozen=True, slots=True)
class DrawnBatch:
    """The same on the device, where it may not have been computed yet."""

    # [rows] int64; ids of the vocabulary also where the logits are no numbers.
    token_ids: Tensor
    # [rows] float32: the highest logit, not finite where the logits are no numbers.
    highest: Tensor
    # None where no row wants any.
    logprobs: OrderedLogprobs | None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What `read` wants on the host."""
        more = () if self.logprobs is None else self.logprobs.tensors
        return self.token_ids, self.highest, *more

    def read(self, on_host: tuple[Tensor, ...]) -> SampledBatch:
        """The batch, of `tensors` copied to the host."""
        token_ids, highest, *logprobs = on_host
        return SampledBatch(
            token_ids.numpy(),
            np.isfinite(highest.numpy()),
            () if self.logprobs is None else self.logprobs.read(*logprobs),
        )


def sample(logits: Tensor, batch: SamplingBatch) -> SampledBatch:
    """Draw from logits [rows, vocab_size] float32, which stay as they are."""
    drawn = draw(logits, batch)
    return drawn.read(tuple(tensor.cpu() for tensor in drawn.tensors))


def draw(logits: Tensor, batch: SamplingBatch, newest: Tensor | None = None) -> DrawnBatch:
    """Order the draw from logits [rows, vocab_size] float32, which stay as they are.

    `newest`: the newest token of each row's history, [rows] int64 on the device; needed where the
    host does not know one.
    """
    highest, token_ids = logits.max(dim=-1)
    # Rows without finite logits are drawn as well: that they are, only the device knows.
    is_drawn = batch.temperature > 0
    if (adjustments := batch.adjustments) is not None:
        rows = adjustments.rows
        adjusted = to_device(rows, logits.device)
        scores = logits.index_select(0, adjusted).double()
        adjust(scores, adjustments, None if newest is None else newest.index_select(0, adjusted))
        token_ids.index_copy_(0, adjusted, scores.max(dim=-1).indices)
        places = np.flatnonzero(is_drawn[rows])
        _draw(scores, places, rows[places], batch, token_ids)
        is_drawn[rows] = False
    rows = np.flatnonzero(is_drawn)
    _draw(logits, rows, rows, batch, token_ids)
    logprobs = order_logprobs(logits, token_ids, batch.num_logprobs)
    return DrawnBatch(token_ids, highest, logprobs)


def kept_tokens(
    scaled: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What the cuts keep: (token ids by falling probability, their probabilities before top_p).

    min_p cuts first, then top_k, then top_p what is left of the probability. A cut token has
    probability 0; the first is always kept. Equal scores rank by lower id.
    Shapes: scaled [rows, vocab_size] float64, highest 0; top_k [rows, 1] int64, 0 keeps all;
        top_p, min_p [rows, 1] float64; results [rows, vocab_size].
    """
    scores, order = torch.sort(scaled, dim=-1, descending=True, stable=True)
    weights = scores.exp()
    if min_p is not None:
        weights.masked_fill_(weights < min_p, 0.0)  # the likeliest has weight 1
    rank = torch.arange(scaled.shape[-1], device=scaled.device)
    weights.masked_fill_((rank >= top_k) & (top_k > 0), 0.0)
    # Not sum(): with several threads it adds up a single row in another order than many rows.
    weights.div_(weights.cumsum(-1)[:, -1:])
    before = weights.cumsum(-1).sub_(weights)
    # Rounding brings the sum to 1 before the end: a top_p of 1 must still keep everything.
    weights.masked_fill_((before >= top_p) & (rank > 0) & (top_p < 1.0), 0.0)
    return order, weights


def _draw(
    scores: Tensor,
    places: Int64Array,
    rows: Int64Array,
    batch: SamplingBatch,
    token_ids: Tensor,
) -> None:
    """Draw rows of the batch from those places of scores [n, vocab_size] into token_ids."""
    if not len(rows):
        return
    # Only cuts by rank need the order of the whole vocabulary.
    is_ranked = (batch.top_k[rows] > 0) | (batch.top_p[rows] < 1.0)
    for picked, draw_from in ((~is_ranked, _draw_from_all), (is_ranked, _draw_from_kept)):
        if picked.any():
            drawn = rows[picked]
            scaled = _scaled(_rows(scores, places[picked]), batch.temperature[drawn])
            found = draw_from(scaled, drawn, batch)
            token_ids.index_copy_(0, to_device(drawn, scores.device), found)


def _scaled(scores: Tensor, temperature: FloatArray) -> Tensor:
    """Float64: scores over temperature [rows], moved so that the highest is 0."""
    scores = scores.double()
    scores = scores.sub_(scores.amax(-1, keepdim=True))
    return scores.div_(_column(temperature, scores.device))


def _draw_from_all(scaled: Tensor, rows: Int64Array, batch: SamplingBatch) -> Tensor:
    weights = scaled.exp_()
    if (min_p := _min_p(rows, batch, scaled.device)) is not None:
        weights.masked_fill_(weights < min_p, 0.0)
    return _invert(weights, rows, batch)


def _draw_from_kept(scaled: Tensor, rows: Int64Array, batch: SamplingBatch) -> Tensor:
    device = scaled.device
    top_k, top_p = _column(batch.top_k[rows], device), _column(batch.top_p[rows], device)
    order, weights = kept_tokens(scaled, top_k, top_p, _min_p(rows, batch, device))
    return order.gather(1, _invert(weights, rows, batch).unsqueeze(1)).squeeze(1)


def _min_p(rows: Int64Array, batch: SamplingBatch, device: torch.device) -> Tensor | None:
    """[rows, 1]; None where no row cuts by it."""
    min_p = batch.min_p[rows]
    return _column(min_p, device) if min_p.any() else None


def _invert(weights: Tensor, rows: Int64Array, batch: SamplingBatch) -> Tensor:
    """The place in each row where the cumulated weight passes the row's random number."""
    cumulated = weights.cumsum(-1)
    random = uniforms(batch.seed[rows], batch.output_index[rows])
    target = cumulated[:, -1:] * _column(random, weights.device)
    # Rounding can bring the target up to the total: the last place with any weight is meant then.
    last = (cumulated < cumulated[:, -1:]).sum(-1)
    return torch.minimum((cumulated <= target).sum(-1), last)


def _column(values: npt.NDArray[np.generic], device: torch.device) -> Tensor:
    return to_device(values, device).unsqueeze(1)


def _rows(matrix: Tensor, rows: Int64Array) -> Tensor:
    """A copy of these rows."""
    return matrix.index_select(0, to_device(rows, matrix.device))
