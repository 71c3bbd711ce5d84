"""Latency goals of five published evaluations, as their repositories and papers state them."""

from simulator.traces.published_slos import (
    AbsoluteLimit,
    LatencyLimit,
    PublishedSlo,
    SlowdownLimit,
)


def _distserve(model: str, workload: str, ttft_s: float, per_token_s: float) -> PublishedSlo:
    """DistServe, OSDI 2024."""
    return PublishedSlo(
        source="distserve",
        model=model,
        workload=workload,
        service_class="interactive",
        share=None,
        ttft=AbsoluteLimit(ttft_s),
        per_token=AbsoluteLimit(per_token_s),
        per_token_metric="mean per output token",
        attainment_rule="90% of requests meet both",
        hardware="A100-80G",
        where="evaluation/ae-scripts/e2e/_plot.py",
    )


def _splitwise(share: str, ttft: float, per_token: float, whole: str) -> PublishedSlo:
    """Splitwise, ISCA 2024; the class is the percentile of requests for which it holds."""
    return PublishedSlo(
        source="splitwise",
        model="Llama2-70B and BLOOM-176B",
        workload="Azure conversation and code",
        service_class=share,
        share=None,
        ttft=SlowdownLimit(ttft),
        per_token=SlowdownLimit(per_token),
        per_token_metric="slowdown against an idle DGX-A100",
        attainment_rule=f"end-to-end slowdown {whole}",
        hardware="A100/H100",
        where="notebooks/plots.ipynb get_slo",
    )


def _mooncake(name: str, per_token_s: float) -> PublishedSlo:
    """Mooncake, FAST 2025."""
    return PublishedSlo(
        source="mooncake",
        model="Llama3-70B shaped",
        workload="conversation, function calls, synthetic",
        service_class=name,
        share=None,
        ttft=AbsoluteLimit(30.0),
        per_token=AbsoluteLimit(per_token_s),
        per_token_metric="mean of the longest 10% of gaps",
        attainment_rule="share of requests meeting both",
        hardware="A800-80G x8 per node, 16 nodes, 4x200 Gb/s",
        where="section 5.1",
    )


def _sarathi(model: str, name: str, per_token_s: float, hardware: str) -> PublishedSlo:
    """Sarathi-Serve, OSDI 2024."""
    return PublishedSlo(
        source="sarathi-serve",
        model=model,
        workload="chat (ShareGPT) and arXiv",
        service_class=name,
        share=None,
        ttft=None,
        per_token=AbsoluteLimit(per_token_s),
        per_token_metric="P99 gap between tokens",
        attainment_rule="capacity search, 2048 requests",
        hardware=hardware,
        where="osdi-experiments/figure-5-6/README.md",
    )


def _niyama(name: str, limit: LatencyLimit, metric: str) -> PublishedSlo:
    """Niyama, 2025."""
    return PublishedSlo(
        source="niyama",
        model="Llama3-8B TP1",
        workload="Azure code / conversation, ShareGPT",
        service_class=name,
        share=1 / 3,
        ttft=limit,
        per_token=None,
        per_token_metric=metric,
        attainment_rule="three tiers drawn uniformly at random",
        hardware="A100-80G",
        where="sarathi/core/datatypes/sequence.py; fig10_11.sh",
    )


PUBLISHED_SLOS: tuple[PublishedSlo, ...] = (
    _distserve("OPT-13B", "chat (ShareGPT)", 0.25, 0.1),
    _distserve("OPT-66B", "chat (ShareGPT)", 0.4, 0.1),
    _distserve("OPT-175B", "chat (ShareGPT)", 4.0, 0.2),
    _distserve("OPT-66B", "code completion (HumanEval)", 0.125, 0.2),
    _distserve("OPT-66B", "summarisation (LongBench)", 15.0, 0.15),
    _splitwise("p50", 2, 1.25, "1.25x"),
    _splitwise("p90", 3, 1.5, "1.5x"),
    _splitwise("p99", 6, 5, "5x"),
    _mooncake("strict", 0.1),
    _mooncake("middle", 0.2),
    _mooncake("loose", 0.3),
    _sarathi("Mistral-7B", "strict", 0.1, "A100-80G PCIe"),
    _sarathi("Mistral-7B", "relaxed", 0.5, "A100-80G PCIe"),
    _sarathi("Yi-34B TP2", "strict", 0.2, "A100-80G PCIe"),
    _sarathi("Yi-34B TP2", "relaxed", 1.0, "A100-80G PCIe"),
    _sarathi("Llama2-70B", "strict", 1.0, "A40 x8"),
    _sarathi("Llama2-70B", "relaxed", 5.0, "A40 x8"),
    _sarathi("Falcon-180B", "strict", 1.0, "A100-80G PCIe x8"),
    _sarathi("Falcon-180B", "relaxed", 5.0, "A100-80G PCIe x8"),
    _niyama(
        "tier 0",
        AbsoluteLimit(6.0),
        "deadline on first token (scheduler budget 50 ms per iteration)",
    ),
    _niyama("tier 1", AbsoluteLimit(600.0), "deadline"),
    _niyama("tier 2", AbsoluteLimit(1800.0), "deadline"),
)
