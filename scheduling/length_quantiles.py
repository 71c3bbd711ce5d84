"""Online quantiles: an answer will be about as long as what similar requests got lately."""

from typing import Final

from scheduling.length_pool import PooledLengths, groups_of
from scheduling.prediction import RequestFeatures, ResponseLength

# Default share of answers that the bound is to cover.
BOUND_QUANTILE: Final = 0.9


class OnlineQuantiles:
    """The mean and a high quantile of the last answers of like requests.

    Alike are requests of one tenant and class whose prompts have about one length (one power of
    two), then those of the tenant and class, then all; few answers of the narrower group borrow
    from the wider. Before there are answers the bound is max_tokens: the first requests are never
    under-predicted. One prediction or observation is O(log n), whatever the windows hold.

    An answer that was cut at max_tokens would have been at least that long. It is taken for one of
    the known answers that are as long or longer, in turn over all of them (Kaplan and Meier's
    estimate, by drawing); where there is none, for longer than any max_tokens.
    """

    def __init__(
        self,
        bound_quantile: float = BOUND_QUANTILE,
        window: int = 512,
        pooling_samples: float = 8,
        max_groups: int = 1024,
    ) -> None:
        if not 0 < bound_quantile < 1:
            raise ValueError(f"bound_quantile must be in (0, 1), got {bound_quantile}")
        self._bound_quantile = bound_quantile
        self._lengths = PooledLengths(window, pooling_samples, max_groups)

    def predict(self, features: RequestFeatures) -> ResponseLength:
        """The expected length and a bound on it, both within max_tokens."""
        mean, bound = self._lengths.summary(
            groups_of(features),
            self._bound_quantile,
            features.num_output_tokens,
            features.max_tokens,
        )
        return ResponseLength.within(features, mean, bound)

    def observe(self, features: RequestFeatures, num_output_tokens: int) -> None:
        """Learn from an answer that came to its natural end or to max_tokens."""
        if num_output_tokens < features.max_tokens:
            self._lengths.add(groups_of(features), num_output_tokens)
        else:
            self._lengths.add_cut(groups_of(features), num_output_tokens)
