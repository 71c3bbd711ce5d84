"""A batch time that follows the machine it runs on: observed passes in, a better model out.

A worker tells every pass it has timed. What is kept is bounded and sorted by the kind of pass, so
that an hour of pure decoding does not wash away what a prompt costs, and each kind speaks through
the middle of its latest passes, so that a pass that was held up does not count.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from scheduling.batch_time import BatchShape, BatchTime, features
from scheduling.batch_time_fit import FitError, MeasuredBatch, NormalEquations, solve_non_negative

# A rough prior for a machine nobody has measured: only the proportions matter, the first
# observations set the speed. Those of an 8B model on one large GPU.
UNKNOWN_MACHINE = BatchTime(
    fixed_s=8e-3,
    bends=((0, 2e-6), (128, 2e-5), (256, 4e-5), (512, 1e-5)),
    prompt_fixed_s=1e-3,
    per_sequence_s=1e-5,
    per_context_token_s=6e-8,
    per_prompt_pair_s=4e-9,
)


@dataclass(frozen=True, slots=True)
class OnlineFitSettings:
    """How much is remembered and how often the model changes."""

    # Passes kept of each kind; the middle half of them is believed.
    window_per_kind: int = 8
    # Kinds of passes kept; the one that was not seen for longest is forgotten.
    max_kinds: int = 64
    # Passes between two fits; each costs a few milliseconds.
    refit_every: int = 64
    # How strongly coefficients stay with the prior where the passes do not tell them apart.
    prior_strength: float = 1e-3
    # Passes over which the error is reported.
    error_window: int = 256

    def __post_init__(self) -> None:
        if min(self.window_per_kind, self.max_kinds, self.refit_every, self.error_window) < 1:
            raise ValueError(f"windows and counts must be at least 1, got {self}")
        if self.prior_strength <= 0:
            raise ValueError(f"prior_strength must be > 0, got {self.prior_strength}")


@dataclass(frozen=True, slots=True)
class PassTimeError:
    """How far predictions of single passes were off: |predicted - measured| / measured.

    Over the last passes of a window, each predicted before it was learnt from.
    """

    # Timed so far, in the window or not.
    num_passes: int
    median: float
    p90: float


@dataclass(slots=True)
class _RecentErrors:
    """The mean of the last errors, in constant time."""

    size: int
    errors: deque[float] = field(default_factory=deque)
    total: float = 0.0

    def add(self, error: float) -> None:
        if len(self.errors) == self.size:
            self.total -= self.errors.popleft()
        self.errors.append(error)
        self.total += error


class OnlineBatchTime:
    """A `BatchTimeModel` that starts from a prior and learns. One thread owns it."""

    def __init__(
        self,
        prior: BatchTime = UNKNOWN_MACHINE,
        settings: OnlineFitSettings | None = None,
    ) -> None:
        """Raises: ValueError when the prior has no fixed cost."""
        if prior.fixed_s <= 0:
            raise ValueError("the prior must have fixed_s > 0; take UNKNOWN_MACHINE if in doubt")
        self._prior = prior
        self._settings = settings or OnlineFitSettings()
        self._model = prior
        self._rows_by_kind: OrderedDict[tuple[int, ...], deque[MeasuredBatch]] = OrderedDict()
        self._errors = _RecentErrors(self._settings.error_window)
        self._error: PassTimeError | None = None
        self._num_observed = 0
        self._largest_fitted = 0
        self._next_refit = 1

    @property
    def model(self) -> BatchTime:
        """What is believed now: a value that will not change, fit to be sent elsewhere."""
        return self._model

    @property
    def num_observed(self) -> int:
        return self._num_observed

    @property
    def num_kept(self) -> int:
        """Passes in memory, at most window_per_kind * max_kinds."""
        return sum(map(len, self._rows_by_kind.values()))

    @property
    def largest_seen(self) -> int:
        """Tokens of the largest pass that the model was fitted to; 0 before the first fit."""
        return self._largest_fitted

    @property
    def mean_relative_error(self) -> float | None:
        """Mean of |predicted - measured| / measured over recent passes; None before the first.

        Each pass is predicted before it is learnt from.
        """
        errors = self._errors
        return max(0.0, errors.total) / len(errors.errors) if errors.errors else None

    @property
    def error(self) -> PassTimeError | None:
        """As of the latest fit, so that asking costs nothing; None before the first pass."""
        return self._error

    def seconds(self, shape: BatchShape) -> float:
        return self._model.seconds(shape)

    def observe(self, shape: BatchShape, seconds: float) -> None:
        """Learn from a pass that took that long. An empty pass, or one without time, says nothing.

        Constant time, but for one call in `refit_every`.
        """
        if shape.num_tokens == 0 or not 0 < seconds < float("inf"):
            return
        self._errors.add(abs(self._model.seconds(shape) - seconds) / seconds)
        self._num_observed += 1
        self._remember(MeasuredBatch(shape, seconds))
        if self._num_observed >= self._next_refit:
            self._model = self._fitted()
            errors = FitError.of(self._errors.errors)
            self._error = PassTimeError(self._num_observed, errors.median, errors.p90)
            # At 1, 2, 4 ... passes first: the prior may be far off.
            self._next_refit += min(self._num_observed, self._settings.refit_every)

    def _remember(self, row: MeasuredBatch) -> None:
        kind = _kind(row.shape)
        rows = self._rows_by_kind.get(kind)
        if rows is None:
            if len(self._rows_by_kind) >= self._settings.max_kinds:
                self._rows_by_kind.popitem(last=False)
            rows = self._rows_by_kind[kind] = deque(maxlen=self._settings.window_per_kind)
        rows.append(row)
        self._rows_by_kind.move_to_end(kind)

    def _fitted(self) -> BatchTime:
        believed = [row for rows in self._rows_by_kind.values() for row in self._middle(rows)]
        self._largest_fitted = max(row.shape.num_tokens for row in believed)
        ratios = sorted(row.seconds / self._prior.seconds(row.shape) for row in believed)
        # What was never seen is as much slower or faster than the prior as what was.
        speed = ratios[len(ratios) // 2]
        model = self._solved(believed, speed)
        likely = [row for row in believed if 0.5 < model.seconds(row.shape) / row.seconds < 2]
        # A kind that was seen once and held up then has no middle; it shows only here.
        if len(likely) < len(believed) <= 2 * len(likely):
            model = self._solved(likely, speed)
        return model

    def _solved(self, rows: Sequence[MeasuredBatch], speed: float) -> BatchTime:
        expected = [speed * coefficient for coefficient in self._prior.coefficients()]
        starts = self._prior.bend_starts
        equations = NormalEquations(len(expected))
        for row in rows:
            # Relative, but for passes that are too short to be true: they would outweigh all.
            scale = max(row.seconds, speed * self._prior.seconds(row.shape) / 4)
            columns = [x / scale for x in features(row.shape, starts)]
            equations.add(columns, row.seconds / scale)
        equations.pull_towards(expected, self._settings.prior_strength)
        solution = solve_non_negative(equations.gram, equations.target)
        return BatchTime.from_coefficients(solution, starts)

    def _middle(self, rows: deque[MeasuredBatch]) -> list[MeasuredBatch]:
        """The half of the rows around their median, by how much the prior is off."""
        ordered = sorted(rows, key=lambda row: row.seconds / self._prior.seconds(row.shape))
        cut = (len(ordered) + 1) // 4
        return ordered[cut : len(ordered) - cut] or ordered


def _kind(shape: BatchShape) -> tuple[int, ...]:
    """Passes of one kind differ by less than a factor of two in size, of four in attention."""
    return (
        shape.num_decode.bit_length(),
        shape.decode_context.bit_length() // 2,
        shape.num_prompt_tokens.bit_length(),
        shape.prompt_attention.bit_length() // 2,
    )
