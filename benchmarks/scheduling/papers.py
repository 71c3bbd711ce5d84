"""The headline figures of the papers, and which of ours stands beside each."""

from dataclasses import dataclass

from benchmarks.scheduling.ratios import Figure, common, rate_per_gpu

# "Near" the oracle, as our own goal says it.
_NEAR = 0.9


@dataclass(frozen=True, slots=True)
class Headline:
    """A published figure, as a ratio of one policy to another."""

    text: str
    # Built after the paper, and what it is compared with there.
    policy: str
    base: str
    figure: Figure
    # The published ratio.
    ratio: float
    is_less_better: bool = False

    @property
    def paper(self) -> str:
        """Its name."""
        return self.text.partition(":")[0]

    def is_reached(self, ratio: float) -> bool:
        """At least as good as published."""
        return ratio <= self.ratio if self.is_less_better else ratio >= self.ratio


_JCT, _ATTAINED = common("jct_s", "mean"), common("slo_attainment")
_TTFT, _TBT = common("ttft_ms", "p99"), common("tbt_ms", "p99")

HEADLINES = (
    Headline("EcoServe: throughput up to 4x vLLM's", "ecoserve", "fcfs", rate_per_gpu, 4.0),
    Headline("EcoServe: up to 91 % lower JCT than vLLM", "ecoserve", "fcfs", _JCT, 1 - 0.91, True),
    Headline(
        "EcoServe: up to 91 % higher attainment than vLLM", "ecoserve", "fcfs", _ATTAINED, 1.91
    ),
    Headline(
        "EcoServe: 78 % fewer GPUs than DistServe",
        "ecoserve",
        "distserve",
        rate_per_gpu,
        1 / (1 - 0.78),
    ),
    Headline("CacheOPT: tail TBT up to 3.29x lower", "cacheopt", "fcfs", _TBT, 1 / 3.29, True),
    Headline("CacheOPT: tail TTFT up to 2.83x lower", "cacheopt", "fcfs", _TTFT, 1 / 2.83, True),
    Headline("CacheOPT: 1.58x the rate", "cacheopt", "fcfs", rate_per_gpu, 1.58),
    # The least that is published: on every one of its traces.
    Headline("AccelGen: goodput 1.42 to 11.21x", "accelgen", "fcfs", rate_per_gpu, 1.42),
    Headline("AccelGen: near the oracle", "accelgen", "oracle", rate_per_gpu, _NEAR),
)
