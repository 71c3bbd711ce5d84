"""A batch-time model read backwards: how many tokens fit into a time, and how many are enough.

AccelGen's dynamic chunks ask the first question in every iteration, EcoServe's target forward size
is the answer to the second.
"""

from dataclasses import replace

from scheduling.batch_time import BatchShape, BatchTime, BatchTimeModel
from scheduling.batch_time_online import OnlineBatchTime

# Candidates for the target forward size are multiples of this.
_SIZE_STEP = 16
# Gives nearly the size that AccelGen measured for OPT-13B on one A100 (848 and 768 tokens).
DEFAULT_FRACTION = 0.85
# A bend is known when a pass this much larger was seen.
_SEEN_BEYOND = 1.5
# Less than any pass takes. A fit to few passes may leave nothing for tokens; rates stay finite.
_LEAST_S = 1e-9


def max_prompt_tokens(
    model: BatchTimeModel,
    shape_without_prompt: BatchShape,
    limit_s: float,
    max_tokens: int,
    start: int = 0,
) -> int:
    """The longest chunk of a prompt, from token `start` on, with which the pass keeps the limit.

    0 <= answer <= max_tokens; 0 when not even one token fits. A binary search: about 12 predictions
    for 4,096 tokens. Shapes with other chunks in it are welcome.
    """
    if max_tokens <= 0 or limit_s <= 0:
        return 0

    def fits(num_tokens: int) -> bool:
        return model.seconds(shape_without_prompt.with_chunk(start, num_tokens)) <= limit_s

    if fits(max_tokens):
        return max_tokens
    # fits(low) or low == 0; not fits(high).
    low, high = 0, max_tokens
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def target_forward_size(
    model: BatchTimeModel, fraction: float = DEFAULT_FRACTION, max_tokens: int = 8192
) -> int:
    """EcoServe's TFS: the fewest tokens in a pass that give `fraction` of the best tokens/s.

    Tokens of prompts whose attention is left out: it depends on the prompt, not on the size of the
    pass. The best rate is taken over all sizes up to `max_tokens`, and the answer is a multiple of
    16. A higher fraction gives more throughput and longer iterations. Of sizes that take no time by
    the model, the largest counts as the best.
    Raises: ValueError for a fraction outside (0, 1] or less than 16 tokens.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    if max_tokens < _SIZE_STEP:
        raise ValueError(f"max_tokens must be at least {_SIZE_STEP}, got {max_tokens}")
    sizes = range(_SIZE_STEP, max_tokens + 1, _SIZE_STEP)
    times_s = (model.seconds(BatchShape(num_prompt_tokens=size)) for size in sizes)
    rates = [size / max(time_s, _LEAST_S) for size, time_s in zip(sizes, times_s, strict=True)]
    enough = fraction * max(rates)
    return next(size for size, rate in zip(sizes, rates, strict=True) if rate >= enough)


class ForwardSize:
    """EcoServe's TFS of a model that may learn: looked for anew whenever the model has changed."""

    def __init__(
        self, model: BatchTimeModel, max_tokens: int, fraction: float = DEFAULT_FRACTION
    ) -> None:
        self._model = model
        self._max_tokens = max_tokens
        self._fraction = fraction
        self._known: tuple[BatchTimeModel, int] | None = None

    @property
    def num_tokens(self) -> int:
        """The knee of the model as it is now, at most `max_tokens`; a look-up between two fits."""
        model = self._model
        fitted = model.model if isinstance(model, OnlineBatchTime) else model
        if self._known is None or self._known[0] is not fitted:
            self._known = fitted, self._found(fitted)
        return self._known[1]

    def _found(self, fitted: BatchTimeModel) -> int:
        model: BatchTimeModel = fitted
        if isinstance(self._model, OnlineBatchTime):
            assert isinstance(fitted, BatchTime)
            seen = self._model.largest_seen
            if not seen:
                return self._max_tokens
            # Larger passes are believed to go on as those that were seen. The prior's further bends
            # would put the knee below them, where no pass would ever show that there is none.
            bends = tuple(bend for bend in fitted.bends if _SEEN_BEYOND * bend[0] <= seen)
            model = replace(fitted, bends=bends)
        # Of all sizes, not of those that the limit allows: the limit is no knee.
        return min(self._max_tokens, target_forward_size(model, self._fraction))
