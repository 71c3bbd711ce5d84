"""What the page says of policies, on cells that nobody measured."""

from typing import Any

import pytest

from benchmarks.report.ablation_chapter import ablation_chapter
from benchmarks.report.fields import Results, ResultsUnreadable, results_of
from benchmarks.report.prose import sections_of
from benchmarks.report.scheduling_cells import cell_groups
from benchmarks.report.scheduling_chapter import other_goals, scheduling_chapter

SPREAD = {"mean": 2.0, "p50": 1.0, "p90": 3.0, "p99": 4.0, "max": 5.0}
REASONS = """\
## Policies

`cells.json`.

**Why EcoServe gains nothing here.** It has nothing to lend.

**Something else.** No paper is named.
"""


def cell(policy: str, rate: float | None, **more: Any) -> dict[str, Any]:
    goodput = {
        "cluster": "mixed:3",
        "rate_scale": 2.0,
        "rps": 3 * (rate or 0.0),
        "rps_per_gpu": rate,
        "ending": "found",
        "probes": [[1.0, 1.0], [2.0, 0.91], [4.0, 0.3]],
    }
    return {
        "trace": "azure",
        "hardware": "a100_opt13b",
        "policy": policy,
        "settings": {"seed": 0, "quick": False},
        "requests": 300,
        "too_long": 1,
        "slo": "ttft=1s",
        "goodput": None if rate is None else goodput,
        "common": {
            "cluster": "mixed:3",
            "offered_rps": 2.2,
            "throughput_rps": 2.0,
            "slo_attainment": 0.8,
            "preemptions": 1,
            "swaps": 0,
            "kvc_allocated_share": 0.7,
            "kvc_written_share": 0.6,
            "cached_prompt_share": 0.0,
            "cpu_us_per_request": 900.0,
            "phases_s": {"decoding": 1.0},
            "roles": {"mixed": {"mean_running": 3.0, "iteration_tokens": 40.0}},
            **dict.fromkeys(("ttft_ms", "tbt_ms", "tpot_ms", "jct_s"), SPREAD),
        },
        **more,
    }


def results(*cells: dict[str, Any], module: str = "scheduling.report") -> Results:
    facts = {"date": "2026-01-01", "machine": "a machine", "quick": False}
    command = f"python -m benchmarks.{module} DIR"
    return results_of("cells.json", {"command": command, **facts, "cells": list(cells)})


def page(*cells: dict[str, Any]) -> str:
    return "\n".join(scheduling_chapter(results(*cells), sections_of(REASONS)).parts)


def test_where_ours_is_lower_than_published_the_reason_is_pointed_at() -> None:
    html = page(cell("fcfs", 1.0), cell("default", 5.0), cell("ecoserve", 1.5))
    start = html.index("EcoServe: throughput up to 4x")
    row = html[start : html.index("</tr>", start)]
    assert "<code>ecoserve</code> 1.50 (1.50 to 1.50)" in row
    assert "<strong>lower</strong>, in 0 of 1" in row
    assert "5.00 (5.00 to 5.00)" in row
    assert "in 1 of 1" in row
    assert 'href="#why-policies-1">why 1</a>' in row
    assert "why 2" not in row
    assert 'id="why-policies-1"' in html


def test_where_no_reason_is_written_the_page_says_so() -> None:
    html = page(cell("fcfs", 1.0), cell("default", 1.2), cell("cacheopt", 1.1))
    start = html.index("CacheOPT: 1.58x the rate")
    row = html[start : html.index("</tr>", start)]
    assert "mean is lower; no reason is written" in row


def test_a_policy_that_serves_no_rate_has_an_empty_bar_and_one_without_limit_a_mark() -> None:
    open_ended = cell("oracle", 4.0)
    open_ended["goodput"]["ending"] = "no limit found"
    html = page(cell("fcfs", None), cell("default", 2.0), open_ended)
    assert ">none</text>" in html
    assert ">4 + (2.00)</text>" in html
    assert 'class="b s2 o"' in html


def test_cells_that_were_measured_in_another_way_stand_apart() -> None:
    small = {"seed": 0, "quick": False, "kv_share": 0.25}
    found = cell_groups(
        results(cell("fcfs", 1.0), cell("fcfs", 2.0, settings=small), cell("default", 3.0))
    )
    assert [len(group.entries) for group in found] == [2, 1]
    assert "kv share 0.25" in found[1].title


def test_a_cell_that_was_measured_again_counts_once_and_as_measured_last() -> None:
    (group,) = cell_groups(results(cell("fcfs", 1.0), cell("fcfs", 2.0)))
    assert [entry["goodput"]["rps_per_gpu"] for entry in group.entries] == [2.0]


def test_a_pair_without_any_request_that_fits_is_told() -> None:
    nothing = cell("fcfs", None)
    for name in ("slo", "goodput"):
        del nothing[name]
    nothing["common"] = None
    assert "every prompt is too long for a worker" in page(nothing)


def test_pairs_that_were_measured_under_several_goals_stand_side_by_side() -> None:
    asked = {"seed": 0, "quick": False, "slo": "published"}
    own = [cell("fcfs", 1.0), cell("default", 2.0)]
    published = [
        cell("fcfs", 1.0, settings=asked, slo="ttft=250ms"),
        cell("default", 1.5, settings=asked, slo="ttft=250ms"),
    ]
    assert other_goals([results(*own)]) is None
    chapter = other_goals([results(*own), results(*published)])
    assert chapter is not None
    html = "".join(chapter.parts)
    assert "ttft=250ms (--slo published)" in html
    assert "<td>2.00</td>" in html
    assert "<td>1.50</td>" in html


def test_what_differs_in_more_than_goals_is_not_compared() -> None:
    other = {"seed": 0, "quick": False, "slo": "published", "kv_share": 0.25}
    cells = [cell("default", 2.0), cell("default", 1.5, settings=other)]
    assert other_goals([results(*cells)]) is None


def test_latencies_without_anything_to_measure_are_left_out() -> None:
    alone = cell("fcfs", 1.0)
    alone["common"]["tbt_ms"] = dict.fromkeys(SPREAD)
    html = page(alone)
    assert "Time to first token" in html
    assert "Time between tokens" not in html


def test_a_distribution_of_which_a_part_is_missing_is_an_error() -> None:
    alone = cell("fcfs", 1.0)
    alone["common"]["tbt_ms"] = {**SPREAD, "p99": None}
    with pytest.raises(ResultsUnreadable, match=r"cells\[0\].common.tbt_ms.p99"):
        page(alone)


def test_an_ablation_has_a_bar_for_each_mechanism() -> None:
    module = "scheduling.ablation_report"
    file = results(cell("default", 2.0), cell("default - prefix caching", 1.0), module=module)
    html = "\n".join(ablation_chapter(file, ()).parts)
    assert ">prefix caching</text>" in html
    assert ">2.00</text>" in html
    assert "1 pairs" not in html


def test_an_ablation_needs_what_workers_did() -> None:
    bare = cell("default", 2.0)
    bare["common"]["roles"]["mixed"].pop("mean_running")
    with pytest.raises(ResultsUnreadable, match=r"roles.mixed.mean_running: is missing"):
        ablation_chapter(results(bare), ())
