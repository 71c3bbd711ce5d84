"""Length predictors and rules for their bound, by name."""

from collections.abc import Callable

from scheduling.length_bound import (
    BoundedPredictor,
    BoundRule,
    Hoeffding,
    Padded,
    PredictedQuantile,
)
from scheduling.length_oracles import MaxTokens, Oracle
from scheduling.length_quantiles import OnlineQuantiles
from scheduling.length_regression import OnlineRegression
from scheduling.prediction import LengthPredictor

# Of EcoServe. The least of those measured that covers nine of ten answers (docs/decisions).
PADDING = 1.0

LENGTH_PREDICTORS: dict[str, Callable[[], LengthPredictor]] = {
    "quantiles": OnlineQuantiles,
    "regression": OnlineRegression,
    "max-tokens": MaxTokens,
    "oracle": Oracle,
}
BOUND_RULES: dict[str, BoundRule] = {
    "quantile": PredictedQuantile(),
    "padded": Padded(PADDING),
    "hoeffding": Hoeffding(),
}


def length_predictor_named(name: str, bound: str | None = None) -> LengthPredictor:
    """A new predictor; without a rule for its bound it follows no errors and no arrivals.

    Raises: KeyError for an unknown name.
    """
    predictor = LENGTH_PREDICTORS[name]()
    return predictor if bound is None else BoundedPredictor(predictor, BOUND_RULES[bound])
