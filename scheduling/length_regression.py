"""Online regression: the length of an answer from its prompt, its limit and its group.

Works on logarithms, since lengths differ by factors. Memory does not grow with what is seen.
"""

import math
import zlib
from array import array
from collections.abc import Sequence
from typing import Final

from scheduling.length_pool import LONGEST, PooledLengths, groups_of
from scheduling.length_quantiles import BOUND_QUANTILE
from scheduling.prediction import RequestFeatures, ResponseLength

_NUM_INPUTS: Final = 6
# Ratios of true to expected length are kept as whole numbers of this fraction.
_RATIO_PARTS: Final = 256
_LOG_LONGEST: Final = math.log(LONGEST)


class _LeastSquares:
    """Recursive least squares with forgetting; weights begin at 0.

    Source: Haykin, Adaptive Filter Theory, the RLS algorithm.
    """

    def __init__(self, num_inputs: int, forgetting: float, doubt: float) -> None:
        self._forgetting = forgetting
        self._doubt = doubt
        self._weights = [0.0] * num_inputs
        # Inverse of the inputs' weighted correlation.
        self._inverse = [
            [doubt if row == column else 0.0 for column in range(num_inputs)]
            for row in range(num_inputs)
        ]

    def value(self, inputs: Sequence[float]) -> float:
        return sum(map(float.__mul__, self._weights, inputs))

    def learn(self, inputs: Sequence[float], wanted: float) -> None:
        """O(num_inputs²)."""
        error = wanted - self.value(inputs)
        turned = [sum(map(float.__mul__, row, inputs)) for row in self._inverse]
        # Inputs that stay constant would let the inverse grow without end.
        trace = sum(row[index] for index, row in enumerate(self._inverse))
        forgetting = self._forgetting if trace < self._doubt * len(inputs) else 1.0
        scale = 1 / (forgetting + sum(map(float.__mul__, inputs, turned)))
        for index, row in enumerate(self._inverse):
            gain = scale * turned[index]
            self._weights[index] += gain * error
            self._inverse[index] = [
                (old - gain * other) / forgetting for old, other in zip(row, turned, strict=True)
            ]


class _HashedMeans:
    """Recent means of values by name; names that hash alike share one."""

    def __init__(self, num_slots: int, max_samples: int, pooling_samples: float) -> None:
        self._counts = array("q", bytes(8 * num_slots))
        self._means = array("d", bytes(8 * num_slots))
        self._max_samples = max_samples
        self._pooling_samples = pooling_samples

    def read(self, slot: int, wider: float) -> float:
        """The mean, drawn towards that of the wider group as far as data are few."""
        num = self._counts[slot]
        return wider + (self._means[slot] - wider) * num / (num + self._pooling_samples)

    def add(self, slot: int, value: float) -> None:
        num = min(self._counts[slot] + 1, self._max_samples)
        self._counts[slot] = num
        self._means[slot] += (value - self._means[slot]) / num

    def slot(self, name: str) -> int:
        return zlib.crc32(name.encode()) % len(self._counts)


class OnlineRegression:
    """Expected log length by recursive least squares; around it, the ratios seen lately.

    Inputs are prompt length, max_tokens and recent means: of tenant and class, and of these with
    prompts of about the same length. Mean and bound come from windows of the ratio of true to
    expected length, those of like requests first, so that the bound covers its share however wrong
    the regression is. An answer that was cut at max_tokens is taken for one of the known ratios
    that are as large or larger, as in `OnlineQuantiles`.

    A tenant that nobody knows gets the middle of all: unlike there, it may be far too little.
    """

    def __init__(
        self,
        bound_quantile: float = BOUND_QUANTILE,
        window: int = 512,
        forgetting: float = 0.999,
        pooling_samples: float = 8,
        max_groups: int = 1024,
    ) -> None:
        if not 0 < bound_quantile < 1:
            raise ValueError(f"bound_quantile must be in (0, 1), got {bound_quantile}")
        if not 0 < forgetting <= 1:
            raise ValueError(f"forgetting must be in (0, 1], got {forgetting}")
        self._bound_quantile = bound_quantile
        self._regression = _LeastSquares(_NUM_INPUTS, forgetting, doubt=1.0)
        self._means = _HashedMeans(4 * max_groups, max_samples=256, pooling_samples=pooling_samples)
        self._ratios = PooledLengths(window, pooling_samples, max_groups)
        # Of the last few hundred log lengths; None before the first.
        self._mean: float | None = None

    def predict(self, features: RequestFeatures) -> ResponseLength:
        """The expected length and a bound on it, both within max_tokens."""
        scale = self._expected(self._inputs(features))
        parts = _RATIO_PARTS / scale
        mean, bound = self._ratios.summary(
            groups_of(features),
            self._bound_quantile,
            int(features.num_output_tokens * parts),
            math.ceil(features.max_tokens * parts),
        )
        return ResponseLength.within(features, mean / parts, math.ceil(bound / parts))

    def observe(self, features: RequestFeatures, num_output_tokens: int) -> None:
        """Learn from an answer that came to its natural end or to max_tokens."""
        if self._mean is None:
            self._mean = math.log(num_output_tokens)
        inputs = self._inputs(features)
        scale = self._expected(inputs)
        keys = groups_of(features)
        ratio = max(1, round(_RATIO_PARTS * num_output_tokens / scale))
        log_length = math.log(num_output_tokens)
        if num_output_tokens < features.max_tokens:
            self._ratios.add(keys, ratio)
        else:
            drawn = self._ratios.add_cut(keys, ratio)
            wanted = scale if drawn is None else drawn / _RATIO_PARTS * scale
            log_length = max(log_length, math.log(wanted))
        self._regression.learn(inputs, log_length - self._mean)
        for slot in self._slots(features):
            self._means.add(slot, log_length)
        self._mean += (log_length - self._mean) / 512

    def _expected(self, inputs: Sequence[float]) -> float:
        """Tokens, in [1, LONGEST]: the scale that ratios refer to."""
        log_length = (self._mean or 0.0) + self._regression.value(inputs)
        return math.exp(min(max(log_length, 0.0), _LOG_LONGEST))

    def _slots(self, features: RequestFeatures) -> tuple[int, int]:
        group = f"{features.tenant}\0{features.request_class}"
        # Four steps per power of two.
        step = int(4 * math.log2(1 + features.num_prompt_tokens))
        return self._means.slot(group), self._means.slot(f"{group}\0{step}")

    def _inputs(self, features: RequestFeatures) -> list[float]:
        center = self._mean or 0.0
        group_slot, prompt_slot = self._slots(features)
        group = self._means.read(group_slot, center)
        prompt = self._means.read(prompt_slot, group)
        prompt_size = (math.log1p(features.num_prompt_tokens) - 6) / 3
        return [
            1.0,
            prompt_size,
            prompt_size**2,
            (math.log(features.max_tokens) - 7) / 3,
            group - center,
            prompt - group,
        ]
