"""How a trace is to be read."""

import math
import random
from dataclasses import dataclass

from simulator.traces.errors import TraceOptionInvalid
from simulator.traces.lines import OnProgress

MAX_RATE_FACTOR = 1e9
MAX_PREFIX_BLOCK_TOKENS = 65_536
DEFAULT_PREFIX_BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class HeldLimits:
    """What of a trace is held in memory at most: 1 to 2 GB of requests, 1 GB of names."""

    max_requests: int = 5_000_000
    # References to names of pieces of prompts.
    max_prefix_ids: int = 100_000_000


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What each option does: `read_workload`. Raises: TraceOptionInvalid."""

    rate_scale: float = 1.0
    rate_rps: float | None = None
    max_requests: int | None = None
    seed: int = 0
    prefix_block_tokens: int = DEFAULT_PREFIX_BLOCK_TOKENS
    on_progress: OnProgress | None = None
    limits: HeldLimits = HeldLimits()

    def __post_init__(self) -> None:
        _check_factor("rate_scale", self.rate_scale)
        if self.rate_rps is not None:
            _check_factor("rate_rps", self.rate_rps)
        if self.max_requests is not None:
            _check_whole("max_requests", self.max_requests, self.limits.max_requests)
        _check_whole("prefix_block_tokens", self.prefix_block_tokens, MAX_PREFIX_BLOCK_TOKENS)

    @property
    def num_wanted(self) -> int:
        """How many requests are read at most; one more than may be held is an error."""
        return self.limits.max_requests + 1 if self.max_requests is None else self.max_requests

    def random_for(self, purpose: str) -> random.Random:
        """Random numbers that no other purpose draws from, the same for the same seed."""
        return random.Random(f"{purpose} {self.seed}")


def _check_factor(option: str, value: float) -> None:
    if not (math.isfinite(value) and 1 / MAX_RATE_FACTOR <= value <= MAX_RATE_FACTOR):
        expected = f"a number from {1 / MAX_RATE_FACTOR:g} to {MAX_RATE_FACTOR:g}"
        raise TraceOptionInvalid(option, value, expected)


def _check_whole(option: str, value: int, high: int) -> None:
    if not 1 <= value <= high:
        raise TraceOptionInvalid(option, value, f"a whole number from 1 to {high}")
