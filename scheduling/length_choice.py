"""Length predictors and rules for their bound, by name."""

from collections.abc import Callable

from scheduling.length_bound import (
    BoundedPredictor,
    BoundRule,
    Hoeffding,
    Padded,
    PredictedQuantile,
)
from scheduling.length_oracles import MaxTokens, NoisyOracle, Oracle
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
# With a colon and its largest relative error; what it draws is the same in every run.
NOISY_ORACLE = "noisy-oracle"
_NOISE_SEED = 0
BOUND_RULES: dict[str, BoundRule] = {
    "mean": Padded(0.0, quantum_tokens=1),
    "quantile": PredictedQuantile(),
    "padded": Padded(PADDING),
    "hoeffding": Hoeffding(),
}


def needs_foresight(name: str) -> bool:
    """The predictor must be told how long answers will be."""
    return name.partition(":")[0] in ("oracle", NOISY_ORACLE)


def length_predictor_named(name: str, bound: str | None = None) -> LengthPredictor:
    """A new predictor; without a rule for its bound it follows no errors and no arrivals.

    Raises: KeyError for an unknown name; ValueError for an error that is no share.
    """
    kind, _, relative_error = name.partition(":")
    predictor: LengthPredictor
    if kind == NOISY_ORACLE:
        predictor = NoisyOracle(float(relative_error), _NOISE_SEED)
    else:
        predictor = LENGTH_PREDICTORS[name]()
    return predictor if bound is None else BoundedPredictor(predictor, BOUND_RULES[bound])
