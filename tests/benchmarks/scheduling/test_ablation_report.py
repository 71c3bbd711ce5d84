from collections.abc import Mapping
from typing import Any

from benchmarks.scheduling.ablation_report import (
    Direction,
    beside_published,
    direction,
    gains,
    markdown,
    rates,
)
from benchmarks.scheduling.variants import VARIANTS

LATENCY = {"mean": 1.0, "p50": 1.0, "p90": 1.0, "p99": 2.0, "max": 3.0}
PIPELINING = next(v for v in VARIANTS if v.subject.name == "ecoserve - pipelining")


def entry(policy: str, rps: float, running: float = 5.0, **more: Any) -> Mapping[str, Any]:
    role = {"mean_running": running, "iteration_tokens": 100.0}
    return {
        "trace": "azure",
        "hardware": "a100",
        "policy": policy,
        "settings": {"seed": 0, "quick": False},
        "goodput": {"rps_per_gpu": rps, "ending": "found"},
        "common": {
            "slo_attainment": 0.9,
            "preemptions": 2,
            "kvc_written_share": 0.5,
            "cpu_us_per_request": 900.0,
            "phases_s": {"decoding": 1.0},
            "roles": {"mixed": role},
            **dict.fromkeys(("ttft_ms", "tbt_ms", "tpot_ms", "jct_s"), LATENCY),
            **more,
        },
    }


def test_a_gain_is_with_over_without() -> None:
    told = gains([entry("ecoserve", 3.0), entry("ecoserve - pipelining", 2.0)], "ecoserve")
    assert "| pipelining | 1 | 1.50 | 1.00 |" in told
    assert told.endswith("| 2, 2 |")
    assert "decoupling" not in told, "it was not measured"


def test_gains_over_several_pairs_come_with_their_span() -> None:
    entries = [entry("ecoserve", 4.0), entry("ecoserve - pipelining", 1.0)]
    entries += [{**each, "trace": "rag", "goodput": entry("", 1.0)["goodput"]} for each in entries]
    assert "| pipelining | 2 | 2.00 (1.00 to 4.00) |" in gains(entries, "ecoserve")


# PAPERS 1.4.9
def test_a_figure_that_goes_the_other_way_than_published_is_marked() -> None:
    fewer = [entry("ecoserve", 3.0, 5.0), entry("ecoserve - pipelining", 2.0, 4.0)]
    assert direction(fewer, PIPELINING, PIPELINING.expected[0]) == Direction(1, 0, 0)
    assert "running lower (EcoServe, ablation) | as published | 1 / 0 / 0 |" in (
        beside_published(fewer, "ecoserve")
    )
    more = [entry("ecoserve", 3.0, 5.0), entry("ecoserve - pipelining", 2.0, 6.0)]
    assert "**the other way** | 0 / 1 / 0 |" in beside_published(more, "ecoserve")
    alike = [entry("ecoserve", 3.0, 5.0), entry("ecoserve - pipelining", 2.0, 5.1)]
    assert "| no difference | 0 / 0 / 1 |" in beside_published(alike, "ecoserve")


def test_what_was_measured_on_one_side_only_says_nothing() -> None:
    alone = [entry("ecoserve", 3.0)]
    assert direction(alone, PIPELINING, PIPELINING.expected[0]) is None
    assert gains(alone, "ecoserve") == rates(alone, "ecoserve") == ""
    assert markdown(alone) == ""


def test_a_pair_that_no_worker_holds_is_no_gain() -> None:
    nothing = {**entry("ecoserve", 1.0), "goodput": None, "common": None}
    other = {**nothing, "policy": "ecoserve - pipelining"}
    assert gains([nothing, other], "ecoserve") == ""


def test_rates_stand_beside_each_other() -> None:
    told = rates([entry("ecoserve", 3.0), entry("ecoserve - pipelining", 2.0)], "ecoserve")
    assert "| trace, hardware | `ecoserve` | pipelining |" in told
    assert "| azure, a100 | 3 | 2 |" in told
