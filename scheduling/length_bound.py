"""From a prediction to what is allocated for it: rules for the bound, and what they need to know.

`BoundedPredictor` puts a rule behind any predictor. It follows the arrival rate and the errors of
the mean; a rule is a pure function of these.
"""

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from typing import Protocol

from scheduling.prediction import LengthPredictor, RequestFeatures, ResponseLength


class BoundRule(Protocol):
    """Turns a prediction into the tokens to allocate for the answer."""

    def bound(self, predicted: ResponseLength, max_tokens: int, arrivals_per_s: float) -> int:
        """Tokens; the caller keeps them within max_tokens."""
        ...


@dataclass(frozen=True, slots=True)
class PredictedQuantile:
    """The bound that the predictor gave: a quantile of what it has seen."""

    def bound(self, predicted: ResponseLength, max_tokens: int, arrivals_per_s: float) -> int:
        """As predicted."""
        return predicted.bound


@dataclass(frozen=True, slots=True)
class Padded:
    """The mean times 1 + padding, rounded up to a quantum so that like predictions are equal.

    Source: EcoServe, the RL predictor's padding; the quantum serves its same-RL groups.
    """

    padding: float
    quantum_tokens: int = 16

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"padding must not be negative, got {self.padding}")
        if self.quantum_tokens < 1:
            raise ValueError(f"quantum_tokens must be at least 1, got {self.quantum_tokens}")

    def bound(self, predicted: ResponseLength, max_tokens: int, arrivals_per_s: float) -> int:
        """Padded and rounded up."""
        padded = predicted.mean * (1 + self.padding)
        return self.quantum_tokens * math.ceil(padded / self.quantum_tokens)


@dataclass(frozen=True, slots=True)
class Hoeffding:
    """The mean plus what an error exceeds with probability 1 − P at most; minus it where the mean
    is expected to be high already.

    P = alpha / (1 + beta × arrival rate): the more arrives, the less is kept back for each.
    Source: CacheOPT, confidence-bounded length; Hoeffding's inequality for errors in a known range.
    """

    alpha: float = 0.95
    # Seconds: at 1 / beta arrivals a second the confidence is half of alpha.
    beta: float = 0.001

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must be in (0, 1), got {self.alpha}")
        if self.beta < 0:
            raise ValueError(f"beta must not be negative, got {self.beta}")

    def confidence(self, arrivals_per_s: float) -> float:
        """P, the least probability with which the bound is to hold."""
        return self.alpha / (1 + self.beta * arrivals_per_s)

    def margin(self, spread: int, arrivals_per_s: float) -> float:
        """Tokens between mean and bound, for errors in a range of this width."""
        confidence = self.confidence(arrivals_per_s)
        return math.sqrt(-(spread**2) / 2 * math.log1p(-confidence))

    def bound(self, predicted: ResponseLength, max_tokens: int, arrivals_per_s: float) -> int:
        """Mean plus or minus the margin, rounded up."""
        margin = self.margin(predicted.spread, arrivals_per_s)
        return math.ceil(predicted.mean + (margin if predicted.is_low else -margin))


class ArrivalRate:
    """Arrivals per second, older ones counting less and less."""

    def __init__(self, memory_s: float = 30.0) -> None:
        if memory_s <= 0:
            raise ValueError(f"memory_s must be positive, got {memory_s}")
        self._memory_s = memory_s
        self._count = 0.0
        self._began_at_s: float | None = None
        self._last_at_s = 0.0

    def arrived(self, now: float) -> None:
        """One more. Times that run backwards count as the latest one."""
        if self._began_at_s is None:
            self._began_at_s = self._last_at_s = now
        self._count = 1 + self._count * math.exp(-self._since(now) / self._memory_s)
        self._last_at_s = max(self._last_at_s, now)

    def per_s(self, now: float) -> float:
        """The rate now; 0 before the first arrival."""
        if self._began_at_s is None:
            return 0.0
        # A second at least, or the first arrival would be an endless rate.
        followed_s = max(1.0, now - self._began_at_s)
        remembered_s = self._memory_s * -math.expm1(-followed_s / self._memory_s)
        return self._count * math.exp(-self._since(now) / self._memory_s) / remembered_s

    def _since(self, now: float) -> float:
        return max(0.0, now - self._last_at_s)


class LengthErrors:
    """What the last predictions were off by: the range, and on which side.

    An error is the true length minus the mean. The range is of the last `window` errors; the side
    is told apart by tenant and class, bounded in number, and older errors count less.
    """

    def __init__(self, window: int = 512, max_groups: int = 1024) -> None:
        if window < 2:
            raise ValueError(f"a range needs a window of at least two errors, got {window}")
        if max_groups < 1:
            raise ValueError(f"max_groups must be at least 1, got {max_groups}")
        self._window = window
        self._max_groups = max_groups
        self._num_errors = 0
        # (number, error) of those that can still become the extreme: the extreme comes first.
        self._largest: deque[tuple[int, int]] = deque()
        self._smallest: deque[tuple[int, int]] = deque()
        # Of each group, the recent share of means that were too low.
        self._low_share: OrderedDict[tuple[str, str], float] = OrderedDict()

    def add(self, features: RequestFeatures, error: int) -> None:
        """One answer came to its end. O(1) on average."""
        while self._largest and self._largest[-1][1] <= error:
            self._largest.pop()
        while self._smallest and self._smallest[-1][1] >= error:
            self._smallest.pop()
        self._largest.append((self._num_errors, error))
        self._smallest.append((self._num_errors, error))
        self._num_errors += 1
        for extremes in (self._largest, self._smallest):
            if extremes[0][0] < self._num_errors - self._window:
                extremes.popleft()
        group = (features.tenant, features.request_class)
        share = self._low_share.pop(group, None)
        if share is None and len(self._low_share) >= self._max_groups:
            self._low_share.popitem(last=False)
        share = 1.0 if share is None else share
        self._low_share[group] = share + ((error > 0) - share) / 32

    def spread(self) -> int | None:
        """Largest minus smallest error of the window; None before there are two."""
        if self._num_errors < 2:
            return None
        return self._largest[0][1] - self._smallest[0][1]

    def is_low(self, features: RequestFeatures) -> bool:
        """The mean is expected to be too low; so it is where nothing is known."""
        return self._low_share.get((features.tenant, features.request_class), 1.0) > 0.5


class BoundedPredictor:
    """A predictor whose bound is made by a rule, and whose mean comes with range and direction.

    An answer's error is that of the mean which is predicted when it ends, just before it is learned
    from: nothing has to be remembered of the requests under way.
    """

    def __init__(
        self,
        predictor: LengthPredictor,
        rule: BoundRule,
        errors: LengthErrors | None = None,
        arrivals: ArrivalRate | None = None,
    ) -> None:
        self._predictor = predictor
        self._rule = rule
        self._errors = errors or LengthErrors()
        self._arrivals = arrivals or ArrivalRate()
        self._now = 0.0

    def predict(self, features: RequestFeatures) -> ResponseLength:
        """Mean and bound; where the rule's bound is below the mean, both are the bound."""
        if features.arrival_at_s is not None and features.num_output_tokens == 0:
            self._arrivals.arrived(features.arrival_at_s)
            self._now = features.arrival_at_s
        spread = self._errors.spread()
        predicted = replace(
            self._predictor.predict(features),
            spread=features.max_tokens if spread is None else spread,
            is_low=self._errors.is_low(features),
        )
        arrivals_per_s = self._arrivals.per_s(self._now)
        bound = self._rule.bound(predicted, features.max_tokens, arrivals_per_s)
        kept = ResponseLength.within(features, predicted.mean, bound)
        return replace(kept, spread=predicted.spread, is_low=predicted.is_low)

    def observe(self, features: RequestFeatures, num_output_tokens: int) -> None:
        """Take the error of the mean, then let the predictor learn."""
        expected = self._predictor.predict(replace(features, num_output_tokens=0)).mean
        self._errors.add(features, num_output_tokens - expected)
        self._predictor.observe(features, num_output_tokens)
