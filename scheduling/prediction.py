"""How long will the answer be? Online statistics with an upper bound.

A prediction orders the GT queue and sizes the decode reservation. A bound that is too low costs a
growth request, one that is too high costs KVC: it is a quantile of what similar requests did.
"""

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ResponseLength:
    """Tokens that an answer is expected to have, 1 <= mean <= bound <= max_tokens."""

    mean: int
    bound: int


@dataclass(frozen=True, slots=True)
class RequestFeatures:
    """What is known of a request before it runs."""

    tenant: str
    request_class: str
    num_prompt_tokens: int
    max_tokens: int


class LengthPredictor(Protocol):
    """Predicts at arrival, learns at the end."""

    def predict(self, features: RequestFeatures) -> ResponseLength: ...

    def observe(self, features: RequestFeatures, num_output_tokens: int) -> None: ...


class _Window:
    """The last lengths of one group, also kept sorted."""

    def __init__(self, size: int) -> None:
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []
        self._size = size
        self._sum = 0

    def __len__(self) -> int:
        return len(self._recent)

    def add(self, length: int) -> None:
        if len(self._recent) == self._size:
            oldest = self._recent.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
            self._sum -= oldest
        self._recent.append(length)
        insort(self._sorted, length)
        self._sum += length

    def mean(self) -> float:
        return self._sum / len(self._recent)

    def quantile(self, fraction: float) -> int:
        # The smallest seen length that at least this fraction of the lengths does not exceed.
        rank = min(len(self._sorted) - 1, int(fraction * len(self._sorted)))
        return self._sorted[rank]


class OnlineQuantiles:
    """Per tenant and class, the mean and a high quantile of the last answers.

    A group with fewer than `min_samples` answers falls back to all answers, and those to
    max_tokens: the first requests are never under-predicted. Groups are bounded; the one that was
    not used for longest is forgotten.
    """

    def __init__(
        self,
        bound_quantile: float = 0.9,
        window: int = 512,
        min_samples: int = 16,
        max_groups: int = 1024,
    ) -> None:
        if not 0 < bound_quantile < 1:
            raise ValueError(f"bound_quantile must be in (0, 1), got {bound_quantile}")
        self._bound_quantile = bound_quantile
        self._window = window
        self._min_samples = min_samples
        self._max_groups = max_groups
        self._groups: OrderedDict[tuple[str, str], _Window] = OrderedDict()
        self._all = _Window(window)

    def predict(self, features: RequestFeatures) -> ResponseLength:
        """The expected length and a bound on it, both within max_tokens."""
        group = self._groups.get((features.tenant, features.request_class))
        if group is None or len(group) < self._min_samples:
            group = self._all
        if len(group) < self._min_samples:
            return ResponseLength(mean=max(1, features.max_tokens // 2), bound=features.max_tokens)
        bound = min(features.max_tokens, max(1, group.quantile(self._bound_quantile)))
        return ResponseLength(mean=max(1, min(bound, round(group.mean()))), bound=bound)

    def observe(self, features: RequestFeatures, num_output_tokens: int) -> None:
        """Learn from an answer that came to its natural end."""
        key = (features.tenant, features.request_class)
        if key not in self._groups and len(self._groups) >= self._max_groups:
            self._groups.popitem(last=False)
        group = self._groups.setdefault(key, _Window(self._window))
        self._groups.move_to_end(key)
        group.add(num_output_tokens)
        self._all.add(num_output_tokens)
