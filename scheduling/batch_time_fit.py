"""Coefficients of a `BatchTime` from measured passes: least squares on the relative error.

Relative, because a decode step of 5 ms matters as much as a prompt of 500; non-negative, because
more work never takes less time. Ten unknowns need no library: the normal equations are solved
here, with the active-set method of Lawson and Hanson (Solving Least Squares Problems, 1974).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scheduling.batch_time import BatchShape, BatchTime, BatchTimeModel, features

# A diagonal of the scaled equations gains this, so that equal columns have a solution.
_RIDGE = 1e-10


@dataclass(frozen=True, slots=True)
class MeasuredBatch:
    """One pass that was timed."""

    shape: BatchShape
    seconds: float
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.shape.num_tokens == 0 or self.seconds <= 0 or self.weight < 0:
            raise ValueError(f"a measured pass has tokens, time and a weight >= 0, got {self}")


@dataclass(frozen=True, slots=True)
class FitError:
    """|predicted - measured| / measured, over `num_rows` passes."""

    num_rows: int
    mean: float
    median: float
    p90: float

    @classmethod
    def of(cls, errors: Iterable[float]) -> "FitError":
        """Of relative errors one by one. Raises: ValueError without any."""
        ordered = sorted(errors)
        if not ordered:
            raise ValueError("no measured pass to compare with; give at least one")
        count = len(ordered)
        return cls(
            num_rows=count,
            mean=sum(ordered) / count,
            median=ordered[count // 2],
            p90=ordered[min(count - 1, int(0.9 * count))],
        )


class NormalEquations:
    """Sums over rows that least squares needs: the size does not grow with the rows."""

    def __init__(self, size: int) -> None:
        self.gram = [[0.0] * size for _ in range(size)]
        self.target = [0.0] * size

    def add(self, row: Sequence[float], value: float, weight: float = 1.0) -> None:
        """Count the equation row . x = value with that weight."""
        for i, left in enumerate(row):
            if left:
                scaled = weight * left
                line = self.gram[i]
                for j, right in enumerate(row):
                    line[j] += scaled * right
                self.target[i] += scaled * value

    def pull_towards(self, solution: Sequence[float], strength: float) -> None:
        """Prefer x close to `solution`, each by `strength` of what the rows say of it alone.

        What no row says anything about stays at `solution`.
        """
        for i, value in enumerate(solution):
            weight = strength * self.gram[i][i] or 1.0
            self.gram[i][i] += weight
            self.target[i] += weight * value


def fit_batch_time(
    rows: Iterable[MeasuredBatch],
    bend_starts: Sequence[int],
    fixed: dict[int, float] | None = None,
) -> BatchTime:
    """The non-negative coefficients with the least sum of squared relative errors.

    `fixed` gives coefficients by their index in `features` that are known and not to be found.
    Raises: ValueError without any row.
    """
    equations: NormalEquations | None = None
    known = fixed or {}
    for row in rows:
        columns = [x / row.seconds for x in features(row.shape, bend_starts)]
        equations = equations or NormalEquations(len(columns))
        value = 1.0
        for index, coefficient in known.items():
            value -= coefficient * columns[index]
            columns[index] = 0.0
        equations.add(columns, value, row.weight)
    if equations is None:
        raise ValueError("no measured pass to fit; give at least one")
    solution = solve_non_negative(equations.gram, equations.target)
    for index, coefficient in known.items():
        solution[index] = coefficient
    return BatchTime.from_coefficients(solution, bend_starts)


def relative_errors(model: BatchTimeModel, rows: Iterable[MeasuredBatch]) -> list[float]:
    """|predicted - measured| / measured of each row."""
    return [abs(model.seconds(row.shape) - row.seconds) / row.seconds for row in rows]


def fit_error(model: BatchTimeModel, rows: Iterable[MeasuredBatch]) -> FitError:
    """How far the model is from measured passes. Raises: ValueError without any row."""
    return FitError.of(relative_errors(model, rows))


def solve_non_negative(gram: Sequence[Sequence[float]], target: Sequence[float]) -> list[float]:
    """The x >= 0 with the least x'Gx / 2 - t'x; G symmetric, positive semidefinite.

    A column that is zero everywhere gets 0.
    """
    size = len(target)
    scale = [gram[i][i] ** 0.5 for i in range(size)]
    used = [i for i in range(size) if scale[i] > 0]
    scaled = [[gram[i][j] / scale[i] / scale[j] for j in used] for i in used]
    wanted = [target[i] / scale[i] for i in used]
    for i in range(len(used)):
        scaled[i][i] += _RIDGE
    found = _active_set(scaled, wanted)
    solution = [0.0] * size
    for place, i in enumerate(used):
        solution[i] = found[place] / scale[i]
    return solution


def _active_set(gram: list[list[float]], target: list[float]) -> list[float]:
    size = len(target)
    solution = [0.0] * size
    free: list[int] = []
    tolerance = 1e-11 * max(map(abs, target), default=0.0)
    # Lawson and Hanson's loop ends by itself; rounding could make it go round for ever.
    for _ in range(3 * size):
        downhill = [target[i] - _dot(gram[i], solution) for i in range(size)]
        best = max((i for i in range(size) if i not in free), key=downhill.__getitem__, default=-1)
        if best < 0 or downhill[best] <= tolerance:
            break
        free.append(best)
        while free:
            trial = _solve([[gram[i][j] for j in free] for i in free], [target[i] for i in free])
            blocked = [place for place, value in enumerate(trial) if value <= 0]
            if not blocked:
                for place, i in enumerate(free):
                    solution[i] = trial[place]
                break
            step = min(
                solution[free[place]] / (solution[free[place]] - trial[place])
                if solution[free[place]] > trial[place]
                else 0.0
                for place in blocked
            )
            for place, i in enumerate(free):
                solution[i] = max(0.0, solution[i] + step * (trial[place] - solution[i]))
            stopped = min(blocked, key=lambda place: solution[free[place]])
            solution[free[stopped]] = 0.0
            del free[stopped]
    return solution


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination with the largest pivot; both arguments are used up."""
    size = len(right)
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(matrix[row][column]))
        matrix[column], matrix[pivot] = matrix[pivot], matrix[column]
        right[column], right[pivot] = right[pivot], right[column]
        for row in range(column + 1, size):
            factor = matrix[row][column] / matrix[column][column]
            if factor:
                right[row] -= factor * right[column]
                for j in range(column, size):
                    matrix[row][j] -= factor * matrix[column][j]
    for row in reversed(range(size)):
        known = sum(matrix[row][j] * right[j] for j in range(row + 1, size))
        right[row] = (right[row] - known) / matrix[row][row]
    return right
