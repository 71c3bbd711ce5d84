"""Predictors that learn nothing: the truth, the truth with an error, and the limit."""

import math
import random

from scheduling.prediction import RequestFeatures, ResponseLength


class MaxTokens:
    """No prediction: every answer may take all that it is allowed to (Orca's max-allocation)."""

    def predict(self, features: RequestFeatures) -> ResponseLength:
        """max_tokens, as mean and as bound."""
        return ResponseLength(features.max_tokens, features.max_tokens)

    def observe(self, features: RequestFeatures, num_output_tokens: int) -> None:
        """Nothing is learned."""


class Oracle:
    """Knows the length of every answer: what prediction can win at most. For simulations."""

    def predict(self, features: RequestFeatures) -> ResponseLength:
        """The truth. Raises: ValueError without known_output_tokens."""
        length = _truth(features)
        return ResponseLength.within(features, length, length)

    def observe(self, features: RequestFeatures, num_output_tokens: int) -> None:
        """Nothing is learned."""


class NoisyOracle:
    """The truth times 1 ± relative_error at most, evenly drawn: what an error costs.

    The error is a function of seed and request, so that it is the same whatever policy runs and in
    whatever order it asks. The bound is the longest answer for which the mean could stand.
    """

    def __init__(self, relative_error: float, seed: int) -> None:
        if not 0 <= relative_error < 1:
            raise ValueError(f"relative_error must be in [0, 1), got {relative_error}")
        self._relative_error = relative_error
        self._seed = seed

    def predict(self, features: RequestFeatures) -> ResponseLength:
        """Mean and bound. Raises: ValueError without known_output_tokens."""
        length = _truth(features)
        # Strings seed alike in every process; hashes of strings do not.
        drawn = random.Random(
            f"{self._seed} {features.tenant} {features.request_class} {features.arrival_at_s} "
            f"{features.num_prompt_tokens} {features.max_tokens} {length}"
        )
        mean = length * (1 + self._relative_error * drawn.uniform(-1, 1))
        bound = math.ceil(mean / (1 - self._relative_error))
        return ResponseLength.within(features, mean, bound)

    def observe(self, features: RequestFeatures, num_output_tokens: int) -> None:
        """Nothing is learned."""


def _truth(features: RequestFeatures) -> int:
    if features.known_output_tokens is None:
        raise ValueError(
            "an oracle needs known_output_tokens, which only traces have; "
            "fill it in, or choose another length predictor"
        )
    return features.known_output_tokens
