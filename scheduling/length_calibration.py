"""What came of the predictions: coverage, errors and waste, for status and metrics."""

import operator
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final, NamedTuple

from scheduling.prediction import RequestFeatures, ResponseLength

# Relative errors are summed as whole millionths: sums of a window must not drift.
_PARTS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Calibration:
    """Of the last answers, how good their predictions were. All zero without answers.

    The true length is what the answer got, also where it was cut at max_tokens: that much had to be
    allocated, no more.
    """

    num_answers: int = 0
    # Cut at max_tokens.
    num_cut: int = 0
    # Share of the answers that the bound was enough for.
    covered_share: float = 0.0
    # Tokens between mean and truth, and the same as a share of the truth; means over the answers.
    mean_absolute_error: float = 0.0
    mean_relative_error: float = 0.0
    # Tokens; the loss whose minimum is the quantile that the bound should be.
    pinball_loss: float = 0.0
    # Tokens allocated in vain, mean over the answers.
    mean_over_allocation: float = 0.0
    # Tokens of all bounds per token of all answers.
    allocation_factor: float = 0.0


class _Outcome(NamedTuple):
    """What one answer adds to each sum."""

    num_cut: int
    num_covered: int
    absolute_error: int
    relative_error_parts: int
    missing: int
    unused: int
    length: int
    bound: int


class _Window:
    """Sums over the last outcomes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._recent: deque[_Outcome] = deque()
        self._sum = _Outcome(0, 0, 0, 0, 0, 0, 0, 0)

    def add(self, outcome: _Outcome) -> None:
        if len(self._recent) == self._size:
            self._change(self._recent.popleft(), -1)
        self._recent.append(outcome)
        self._change(outcome, 1)

    def report(self, bound_quantile: float) -> Calibration:
        num, total = len(self._recent), self._sum
        if not num:
            return Calibration()
        loss = bound_quantile * total.missing + (1 - bound_quantile) * total.unused
        return Calibration(
            num_answers=num,
            num_cut=total.num_cut,
            covered_share=total.num_covered / num,
            mean_absolute_error=total.absolute_error / num,
            mean_relative_error=total.relative_error_parts / _PARTS / num,
            pinball_loss=loss / num,
            mean_over_allocation=total.unused / num,
            allocation_factor=total.bound / total.length,
        )

    def _change(self, outcome: _Outcome, sign: int) -> None:
        change = operator.add if sign > 0 else operator.sub
        self._sum = _Outcome(*map(change, self._sum, outcome))


class CalibrationLog:
    """Compares what was predicted at arrival with what came, in all and by tenant.

    Tenants are bounded; the one that got no answer for longest is forgotten.
    """

    def __init__(
        self, bound_quantile: float = 0.9, window: int = 1024, max_tenants: int = 64
    ) -> None:
        if not 0 < bound_quantile < 1:
            raise ValueError(f"bound_quantile must be in (0, 1), got {bound_quantile}")
        if window < 1 or max_tenants < 1:
            raise ValueError(
                f"window and max_tenants must be at least 1, got {window} and {max_tenants}"
            )
        self._bound_quantile = bound_quantile
        self._window = window
        self._max_tenants = max_tenants
        self._all = _Window(window)
        self._by_tenant: OrderedDict[str, _Window] = OrderedDict()

    def add(
        self, features: RequestFeatures, predicted: ResponseLength, num_output_tokens: int
    ) -> None:
        """One answer of at least one token has ended. O(1)."""
        error = abs(num_output_tokens - predicted.mean)
        outcome = _Outcome(
            num_cut=int(num_output_tokens >= features.max_tokens),
            num_covered=int(num_output_tokens <= predicted.bound),
            absolute_error=error,
            relative_error_parts=_PARTS * error // num_output_tokens,
            missing=max(0, num_output_tokens - predicted.bound),
            unused=max(0, predicted.bound - num_output_tokens),
            length=num_output_tokens,
            bound=predicted.bound,
        )
        tenant = self._by_tenant.get(features.tenant)
        if tenant is None:
            if len(self._by_tenant) >= self._max_tenants:
                self._by_tenant.popitem(last=False)
            tenant = self._by_tenant[features.tenant] = _Window(self._window)
        self._by_tenant.move_to_end(features.tenant)
        tenant.add(outcome)
        self._all.add(outcome)

    def report(self) -> Calibration:
        """Over all tenants."""
        return self._all.report(self._bound_quantile)

    def report_by_tenant(self) -> dict[str, Calibration]:
        """Of each tenant that is remembered, the one with the latest answer last."""
        return {
            name: window.report(self._bound_quantile) for name, window in self._by_tenant.items()
        }
