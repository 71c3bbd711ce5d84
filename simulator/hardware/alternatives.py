"""Other forms of a batch-time model, fitted alike: what the chosen one is compared with.

Used by `python -m simulator.hardware.fit --compare` only; the figures stand in
docs/decisions/batch-time-model.md.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from scheduling.batch_time import BatchShape, BatchTime, BatchTimeModel
from scheduling.batch_time_fit import (
    MeasuredBatch,
    NormalEquations,
    fit_batch_time,
    solve_non_negative,
)

# Where products begin to saturate lies within these on every GPU measured.
BEND_STARTS = (0, 32, 64, 128, 192, 256, 384, 512, 1024, 2048)
_DECODE_BEND = 95


@dataclass(frozen=True, slots=True)
class TwoPhases:
    """DistServe's: a line for prompts, a line for decoding in two regimes.

    A mixed pass is `share_of_sum` of the sum and the rest of the maximum of the two (Echo).
    """

    prompt: tuple[float, ...]
    few: tuple[float, ...]
    many: tuple[float, ...]
    share_of_sum: float

    def seconds(self, shape: BatchShape) -> float:
        prompt = decode = 0.0
        if shape.num_prompt_tokens:
            terms = (1.0, shape.num_prompt_tokens, shape.prompt_attention)
            prompt = sum(a * b for a, b in zip(self.prompt, terms, strict=True))
        if shape.num_decode:
            line = self.few if shape.num_decode < _DECODE_BEND else self.many
            decode_terms = (1.0, shape.num_decode, shape.decode_context)
            decode = sum(a * b for a, b in zip(line, decode_terms, strict=True))
        both, larger = prompt + decode, max(prompt, decode)
        return larger + self.share_of_sum * (both - larger)


Fit = Callable[[Sequence[MeasuredBatch]], BatchTimeModel]
# Columns, and the row they are of.
_Equation = tuple[tuple[float, ...], MeasuredBatch]


def fit_two_phases(rows: Sequence[MeasuredBatch]) -> TwoPhases:
    """Mixed passes are the sum of both phases."""
    return _two_phases(rows, 1.0)


def fit_weighted_phases(rows: Sequence[MeasuredBatch]) -> TwoPhases:
    """Mixed passes between the maximum and the sum, the share on a grid of twentieths."""
    mixed = [row for row in rows if row.shape.num_decode and row.shape.num_prompt_tokens]
    added = _two_phases(rows, 1.0)
    models = [replace(added, share_of_sum=share / 20) for share in range(21)]
    return min(models, key=lambda model: _squared_error(model, mixed))


def fit_one_line(rows: Sequence[MeasuredBatch]) -> BatchTime:
    """One fixed cost, one price for each kind of work."""
    return _without_interaction(rows, (0,))


def fit_roofline(rows: Sequence[MeasuredBatch]) -> BatchTime:
    """Free up to one bend, then linear: weights read once, then products."""
    models = [_without_interaction(rows, (start,)) for start in BEND_STARTS]
    return min(models, key=lambda model: _squared_error(model, rows))


def fit_bends(rows: Sequence[MeasuredBatch]) -> BatchTime:
    """A convex line over tokens; prompt and decode attention add up."""
    return _without_interaction(rows, BEND_STARTS)


def fit_chosen(rows: Sequence[MeasuredBatch]) -> BatchTime:
    """The same, with what prompt and decode cost each other."""
    return fit_batch_time(rows, BEND_STARTS)


FITS: dict[str, Fit] = {
    "two phases, mixed is the sum": fit_two_phases,
    "two phases, mixed between maximum and sum": fit_weighted_phases,
    "one line": fit_one_line,
    "roofline, one bend": fit_roofline,
    "bends": fit_bends,
    "bends and interaction (chosen)": fit_chosen,
}


def _without_interaction(rows: Sequence[MeasuredBatch], bend_starts: Sequence[int]) -> BatchTime:
    # Indices of `features`: attention beside a prompt, and sequences times prompt tokens.
    return fit_batch_time(rows, bend_starts, fixed={5: 0.0, 6: 0.0})


def _two_phases(rows: Sequence[MeasuredBatch], share_of_sum: float) -> TwoPhases:
    prompt: list[_Equation] = []
    few: list[_Equation] = []
    many: list[_Equation] = []
    for row in rows:
        shape = row.shape
        if not shape.num_decode:
            columns = (1.0, float(shape.num_prompt_tokens), float(shape.prompt_attention))
            prompt.append((columns, row))
        elif not shape.num_prompt_tokens:
            columns = (1.0, float(shape.num_decode), float(shape.decode_context))
            (few if shape.num_decode < _DECODE_BEND else many).append((columns, row))
    return TwoPhases(_line(prompt), _line(few), _line(many or few), share_of_sum)


def _line(rows: Sequence[_Equation]) -> tuple[float, ...]:
    equations = NormalEquations(3)
    for columns, row in rows:
        equations.add([x / row.seconds for x in columns], 1.0, row.weight)
    return tuple(solve_non_negative(equations.gram, equations.target))


def _squared_error(model: BatchTimeModel, rows: Sequence[MeasuredBatch]) -> float:
    return sum(row.weight * (model.seconds(row.shape) / row.seconds - 1) ** 2 for row in rows)
