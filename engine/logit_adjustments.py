"""What a request changes in the logits before a token is drawn: bans, biases and penalties.

A batch holds them only for the rows that want any; a batch without any of them holds nothing. They
follow from the tokens of a row alone, so a sequence that was preempted or moved has the same.
Order: tokens that may not end the answer yet, bias, repetition, then frequency and presence.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from engine.to_device import to_device
from scheduling.sampling import SamplingParams

Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


class TokenHistory(Protocol):
    """The tokens of all slots; `SlotTable` has them."""

    # [slot, position]; beyond num_tokens the content means nothing.
    tokens: Int64Array
    # [slot]
    num_tokens: Int64Array
    num_prompt_tokens: Int64Array
    # [slot] tokens behind these that are being sampled: at most one, and not known here yet.
    num_ahead: Int64Array


@dataclass(frozen=True, slots=True)
class Bans:
    """Tokens that a row may not draw: [rows, 1] and [rows, width]; an id may stand there twice."""

    rows: Int64Array
    token_ids: Int64Array


@dataclass(frozen=True, slots=True)
class Biases:
    """What a row adds to which logits; an id that stands there twice has the same bias twice."""

    # [rows, 1]
    rows: Int64Array
    # [rows, width]
    token_ids: Int64Array
    values: FloatArray


@dataclass(frozen=True, slots=True)
class Penalties:
    """The history that rows are penalised for: [rows, width], and [rows, 1] for the others."""

    rows: Int64Array
    # Filled up with the first token of the prompt.
    token_ids: Int64Array
    # Where the newest token belongs, which only the device knows; None where all are known.
    is_unknown: npt.NDArray[np.bool_] | None
    is_output: npt.NDArray[np.bool_]
    repetition: FloatArray
    presence: FloatArray
    frequency: FloatArray


@dataclass(frozen=True, slots=True)
class Adjustments:
    """Of the rows of a batch that want any. Bans, biases and penalties count within these."""

    # Rows of the batch, ascending.
    rows: Int64Array
    bans: Bans | None
    biases: Biases | None
    penalties: Penalties | None


class AdjustmentTable:
    """What each slot wants. The columns of ids grow with the longest list."""

    def __init__(self, max_num_seqs: int) -> None:
        self._min_tokens = np.zeros(max_num_seqs, np.int64)
        self._end_token_ids = np.zeros((max_num_seqs, 1), np.int64)
        self._is_biased = np.zeros(max_num_seqs, np.bool_)
        self._bias_token_ids = np.zeros((max_num_seqs, 1), np.int64)
        self._biases = np.zeros((max_num_seqs, 1), np.float64)
        self._is_penalised = np.zeros(max_num_seqs, np.bool_)
        self._repetition = np.ones(max_num_seqs, np.float64)
        self._presence = np.zeros(max_num_seqs, np.float64)
        self._frequency = np.zeros(max_num_seqs, np.float64)
        # Slots that want any of the above: one look tells that nobody does.
        self._adjusted_slots: set[int] = set()

    def set(self, slot: int, sampling: SamplingParams) -> None:
        """Remember what the sequence in the slot wants from now on."""
        self._min_tokens[slot] = sampling.min_tokens if sampling.end_token_ids else 0
        self._end_token_ids = _filled(self._end_token_ids, slot, sampling.end_token_ids)
        self._is_biased[slot] = bool(sampling.logit_bias)
        ids = tuple(token_id for token_id, _ in sampling.logit_bias)
        self._bias_token_ids = _filled(self._bias_token_ids, slot, ids)
        self._biases = _filled(self._biases, slot, tuple(bias for _, bias in sampling.logit_bias))
        self._repetition[slot] = sampling.repetition_penalty
        self._presence[slot] = sampling.presence_penalty
        self._frequency[slot] = sampling.frequency_penalty
        penalties = (sampling.presence_penalty, sampling.frequency_penalty)
        self._is_penalised[slot] = sampling.repetition_penalty != 1.0 or any(penalties)
        if self._is_penalised[slot] or self._is_biased[slot] or self._min_tokens[slot]:
            self._adjusted_slots.add(slot)

    def forget(self, slot: int) -> None:
        """The sequence in the slot left."""
        self._adjusted_slots.discard(slot)

    def of(self, slots: Int64Array, history: TokenHistory) -> Adjustments | None:
        """What the next token of each slot asks for; None when no slot asks for anything."""
        if not self._adjusted_slots:
            return None
        lengths = history.num_tokens[slots] + history.num_ahead[slots]
        num_output = lengths - history.num_prompt_tokens[slots]
        is_banned = num_output < self._min_tokens[slots]
        rows = np.flatnonzero(is_banned | self._is_biased[slots] | self._is_penalised[slots])
        if not len(rows):
            return None
        slots = slots[rows]
        return Adjustments(
            rows,
            self._bans(np.flatnonzero(is_banned[rows]), slots),
            self._biases_of(np.flatnonzero(self._is_biased[slots]), slots),
            self._penalties(np.flatnonzero(self._is_penalised[slots]), slots, history),
        )

    def _bans(self, rows: Int64Array, slots: Int64Array) -> Bans | None:
        if not len(rows):
            return None
        return Bans(rows[:, None], self._end_token_ids[slots[rows]])

    def _biases_of(self, rows: Int64Array, slots: Int64Array) -> Biases | None:
        if not len(rows):
            return None
        slots = slots[rows]
        return Biases(rows[:, None], self._bias_token_ids[slots], self._biases[slots])

    def _penalties(
        self, rows: Int64Array, slots: Int64Array, history: TokenHistory
    ) -> Penalties | None:
        if not len(rows):
            return None
        slots = slots[rows][:, None]
        num_prompt_tokens, num_known = history.num_prompt_tokens[slots], history.num_tokens[slots]
        ends = num_known + history.num_ahead[slots]
        repetition = self._repetition[slots]
        # Only repetition looks at the prompt, which may be far longer than the output.
        starts = np.where(repetition == 1.0, num_prompt_tokens, 0)
        width = max(1, int((ends - starts).max()))
        positions = starts + np.arange(width)
        is_there = positions < ends
        positions[~is_there] = 0
        is_unknown = positions >= num_known
        return Penalties(
            rows=rows[:, None],
            token_ids=history.tokens[slots, positions],
            is_unknown=is_unknown if is_unknown.any() else None,
            is_output=is_there & (positions >= num_prompt_tokens),
            repetition=repetition,
            presence=self._presence[slots],
            frequency=self._frequency[slots],
        )


def adjust(scores: Tensor, adjustments: Adjustments, newest: Tensor | None = None) -> None:
    """Change scores [len(adjustments.rows), vocab_size] float64 in place.

    `newest`: the newest token of each row's history, [len(adjustments.rows)] on the device; needed
    where the host does not know one.
    Where an index stands twice in one write, it is written with the same value twice.
    """
    device = scores.device
    if (bans := adjustments.bans) is not None:
        scores[_on(device, bans.rows), _on(device, bans.token_ids)] = -torch.inf
    if (biases := adjustments.biases) is not None:
        places = _on(device, biases.rows), _on(device, biases.token_ids)
        scores[places] = scores[places] + _on(device, biases.values)
    if adjustments.penalties is not None:
        _penalise(scores, adjustments.penalties, newest)


def _penalise(scores: Tensor, penalties: Penalties, newest: Tensor | None) -> None:
    device = scores.device
    rows, token_ids = _on(device, penalties.rows), _on(device, penalties.token_ids)
    if penalties.is_unknown is not None:
        assert newest is not None, "the pass knows what it was given"
        token_ids = torch.where(_on(device, penalties.is_unknown), newest[rows], token_ids)
    places = rows, token_ids
    seen = scores[places]
    repetition = _on(device, penalties.repetition)
    seen = torch.where(seen < 0, seen * repetition, seen / repetition)
    counts = torch.zeros(len(seen), scores.shape[1], dtype=torch.int32, device=device)
    counts.scatter_add_(1, token_ids, _on(device, penalties.is_output).int())
    num_times = counts.gather(1, token_ids)
    seen = seen - _on(device, penalties.frequency) * num_times
    scores[places] = seen - _on(device, penalties.presence) * (num_times > 0)


def _filled(column: npt.NDArray[Any], slot: int, values: tuple[Any, ...]) -> npt.NDArray[Any]:
    """The column with these values in the slot's row, the first one repeated behind them."""
    if len(values) > column.shape[1]:
        wider = np.zeros((column.shape[0], len(values)), column.dtype)
        wider[:, : column.shape[1]] = column
        wider[:, column.shape[1] :] = column[:, :1]
        column = wider
    if values:
        column[slot] = values[0]
        column[slot, : len(values)] = values
    return column


def _on(device: torch.device, array: npt.NDArray[Any]) -> Tensor:
    return to_device(array, device)
