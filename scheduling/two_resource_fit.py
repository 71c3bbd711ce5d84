"""Which of several demands leaves least of two resources unused. Pure arithmetic.

Source: AccelGen, multi-resource batching: argmin ||A - D|| with A what is left and D the demand.
Both axes are divided by their capacity, so that a token and a block weigh what they are a share of.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Resources:
    """Forward tokens of one iteration, and KV blocks."""

    num_tokens: int
    num_blocks: int

    def fits_in(self, left: "Resources") -> bool:
        """Neither is short."""
        return self.num_tokens <= left.num_tokens and self.num_blocks <= left.num_blocks

    def less(self, demand: "Resources") -> "Resources":
        """What a demand leaves of it."""
        return Resources(self.num_tokens - demand.num_tokens, self.num_blocks - demand.num_blocks)


def closest_fit(left: Resources, demands: Sequence[Resources], capacity: Resources) -> int | None:
    """Index of the demand after which least is left, the first of equals; None if none fits.

    A resource whose capacity is 0 does not count.
    """
    fitting = [index for index, demand in enumerate(demands) if demand.fits_in(left)]
    return min(
        fitting, key=lambda index: distance(left.less(demands[index]), capacity), default=None
    )


def distance(left: Resources, capacity: Resources) -> float:
    """The square of how far that is from nothing left, each as a share of its capacity."""
    tokens = left.num_tokens / capacity.num_tokens if capacity.num_tokens else 0.0
    blocks = left.num_blocks / capacity.num_blocks if capacity.num_blocks else 0.0
    return tokens * tokens + blocks * blocks
