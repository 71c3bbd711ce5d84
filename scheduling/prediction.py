"""How long will the answer be? What a prediction says, what it is made from, and who makes it.

A prediction orders the GT queue and sizes the decode reservation. A bound that is too low costs a
growth request, one that is too high costs KVC. Predictors are in `length_quantiles.py`,
`length_regression.py` and `length_oracles.py`, rules for the bound in `length_bound.py`, what came
of them in `length_calibration.py`; `length_choice.py` names them all.
"""

from typing import Protocol

from scheduling.value import value


@value
class RequestFeatures:
    """What is known of a request before it runs, or while it does."""

    tenant: str
    request_class: str
    num_prompt_tokens: int
    max_tokens: int
    # Tokens that the answer has already: the prediction is for an answer longer than that.
    num_output_tokens: int = 0
    # By the caller's clock; None where the arrival rate is not to be followed.
    arrival_at_s: float | None = None
    # The truth. Only simulator and tests can fill it in, only oracles read it.
    known_output_tokens: int | None = None


@value
class ResponseLength:
    """Tokens that an answer is expected to have in all, 1 <= mean <= bound <= max_tokens."""

    mean: int
    # What the reservation is made for.
    bound: int
    # Range of the recent errors of the mean, longest minus shortest; 0 where nobody keeps them.
    spread: int = 0
    # The answer is expected to be longer than the mean.
    is_low: bool = False

    @classmethod
    def within(cls, features: RequestFeatures, mean: float, bound: int) -> "ResponseLength":
        """Both moved to where the answer can still end; the mean at most at the bound."""
        least = min(features.num_output_tokens + 1, features.max_tokens)
        bound = min(max(bound, least), features.max_tokens)
        return cls(min(max(round(mean), least), bound), bound)


class LengthPredictor(Protocol):
    """Predicts at arrival, learns at the end."""

    def predict(self, features: RequestFeatures) -> ResponseLength:
        """How long the answer will be in all, num_output_tokens included."""
        ...

    def observe(self, features: RequestFeatures, num_output_tokens: int) -> None:
        """Learn from an answer that ended by itself or at max_tokens.

        In the second case it says only that the answer wanted max_tokens or more.
        """
        ...
