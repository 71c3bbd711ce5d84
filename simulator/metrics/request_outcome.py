"""What became of one request, and whether that was what it had been promised."""

import math
from enum import StrEnum

from scheduling.value import value
from simulator.metrics.distribution import Distribution
from simulator.metrics.quantiles import Ordered, mean_of_longest, quantile
from simulator.slo import GapRule, RequestSlo

_LONGEST_SHARE = 0.1
# Gaps are kept with 24 bits: what equals its goal must not miss it by rounding.
_TOLERANCE = 1 + 1e-6


class Status(StrEnum):
    """How a request ended."""

    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


@value
class GapFigures:
    """The gaps between the tokens of one request, seconds; there is at least one."""

    count: int
    mean: float
    p99: float
    longest_tenth_mean: float
    max: float

    def by_rule(self, rule: GapRule) -> float:
        """What a goal of that kind is compared with."""
        match rule:
            case GapRule.MEAN:
                return self.mean
            case GapRule.EACH:
                return self.max
            case GapRule.P99:
                return self.p99
            case GapRule.LONGEST_TENTH:
                return self.longest_tenth_mean


@value
class RequestOutcome:
    """A request that has ended. Instants are of the run's own clock."""

    # In the workload.
    number: int
    status: Status
    tenant: str
    slo: RequestSlo
    arrived_at_s: float
    # None: it never had one.
    first_token_at_s: float | None
    ended_at_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    # Of the prompt, found computed; tokens that were computed twice are not subtracted.
    num_cached_tokens: int
    num_preemptions: int
    num_swaps: int
    # None with fewer than two tokens.
    gaps: GapFigures | None

    @property
    def ttft_s(self) -> float | None:
        """From arrival to the first token."""
        if self.first_token_at_s is None:
            return None
        return self.first_token_at_s - self.arrived_at_s

    @property
    def jct_s(self) -> float:
        """From arrival to the end."""
        return self.ended_at_s - self.arrived_at_s

    @property
    def meets_ttft(self) -> bool:
        """The first token came in time."""
        return self.ttft_s is not None and self.ttft_s <= self.slo.ttft_s * _TOLERANCE

    @property
    def meets_gaps(self) -> bool:
        """The tokens after the first came in time; nothing to miss with one token."""
        if self.status is not Status.FINISHED:
            return False
        gaps = self.gaps
        return gaps is None or all(
            gaps.by_rule(rule) <= goal * _TOLERANCE for rule, goal in self.slo.gaps
        )

    @property
    def meets_jct(self) -> bool:
        """The last token came in time."""
        return self.status is Status.FINISHED and self.jct_s <= self.slo.jct_s * _TOLERANCE

    @property
    def meets_slo(self) -> bool:
        """It finished, and all of its goals are met."""
        return self.meets_ttft and self.meets_gaps and self.meets_jct


def figures_of_gaps(ordered: list[float]) -> GapFigures:
    """Exact figures of at least one gap; the smallest comes first."""
    return _figures(ordered, math.fsum(ordered) / len(ordered), ordered[-1])


def figures_of_distribution(gaps: Distribution) -> GapFigures:
    """The same of at least one gap, as exactly as they were counted."""
    return _figures(gaps.ordered(), gaps.mean, gaps.largest)


def _figures(ordered: Ordered, mean: float, largest: float) -> GapFigures:
    return GapFigures(
        count=len(ordered),
        mean=mean,
        p99=quantile(ordered, 0.99),
        longest_tenth_mean=mean_of_longest(ordered, _LONGEST_SHARE),
        max=largest,
    )
