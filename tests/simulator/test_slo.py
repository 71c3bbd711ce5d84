"""Goals: from text to seconds of each request."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.batch_time import BatchTime
from simulator.published_slo import PublishedChoice
from simulator.slo import (
    NO_SLO,
    GapRule,
    Goal,
    ModelledIdleTimes,
    RequestSlo,
    SloAssignment,
    SloClass,
    SloPlan,
)
from simulator.slo_text import SloTextInvalid, slo_plan
from simulator.traces.workload import TraceRequest

CHOICE = PublishedChoice(model_billions=13, prompt_tokens=700, output_tokens=200)
# A pass takes 10 ms and 1 ms for each token.
IDLE = ModelledIdleTimes(BatchTime(fixed_s=0.01, bends=((0, 0.001),)), chunk_tokens=100)


def slo_of(text: str, num_prompt: int = 100, num_output: int = 10) -> RequestSlo:
    plan = slo_plan(text, CHOICE)
    (slo,) = SloAssignment(plan, IDLE, 1).slos_of([TraceRequest(0.0, num_prompt, num_output)])
    return slo


@pytest.mark.parametrize(
    ("text", "slo"),
    [
        ("none", NO_SLO),
        ("ttft=1s,tpot=100ms", RequestSlo(ttft_s=1.0, gaps=((GapRule.MEAN, 0.1),))),
        (" ttft = .25 , tbt = 200 us ", RequestSlo(ttft_s=0.25, gaps=((GapRule.EACH, 2e-4),))),
        ("jct=10min", RequestSlo(jct_s=600.0)),
        ("tbt_p99=0.1", RequestSlo(gaps=((GapRule.P99, 0.1),))),
        ("tbt_tail10=100ms", RequestSlo(gaps=((GapRule.LONGEST_TENTH, 0.1),))),
        (
            "tbt=1s,tpot=100ms",
            RequestSlo(gaps=((GapRule.MEAN, 0.1), (GapRule.EACH, 1.0))),
        ),
    ],
)
def test_goals_are_read_with_their_units(text: str, slo: RequestSlo) -> None:
    found = slo_of(text)
    assert (found.ttft_s, found.jct_s) == (slo.ttft_s, slo.jct_s)
    assert [rule for rule, _ in found.gaps] == [rule for rule, _ in slo.gaps]
    for (_, seconds), (_, expected) in zip(found.gaps, slo.gaps, strict=True):
        assert seconds == pytest.approx(expected)


def test_a_slowdown_is_of_the_time_on_an_idle_cluster() -> None:
    # 250 prompt tokens are three chunks; a decode step is 11 ms.
    slo = slo_of("ttft=2x,tpot=3x,jct=10x", num_prompt=250, num_output=20)
    assert slo.ttft_s == pytest.approx(2 * (0.03 + 0.25))
    assert slo.tpot_s == pytest.approx(3 * 0.011)
    # EcoServe's deadline (papers 1.2 m): prefill time, and a step for every token.
    assert slo.jct_s == pytest.approx(10 * (0.28 + 20 * 0.011))


def test_the_smallest_goal_per_token_is_what_a_scheduler_works_towards() -> None:
    assert slo_of("tbt=1s,tpot=100ms").tpot_s == pytest.approx(0.1)
    assert NO_SLO.tpot_s == math.inf


def test_goals_of_accelgen_are_drawn_around_the_idle_time_of_a_class_of_prompts() -> None:
    plan = slo_plan("accelgen:3", CHOICE)
    requests = [TraceRequest(float(number), 500, 10) for number in range(300)]
    slos = SloAssignment(plan, IDLE, 7).slos_of(requests)
    idle_s = IDLE.first_token_s(512)
    factors = [slo.ttft_s / idle_s / 3 for slo in slos]
    assert 0.5 <= min(factors) < 0.55
    assert 1.45 < max(factors) <= 1.5
    gaps_s = [slo.tpot_s for slo in slos]
    assert 0.1875 * 0.75 <= min(gaps_s) < 0.145
    assert 0.23 < max(gaps_s) <= 0.1875 * 1.25
    assert {rule for slo in slos for rule, _ in slo.gaps} == {GapRule.EACH}


def test_the_same_seed_draws_the_same_goals_and_another_one_others() -> None:
    requests = [TraceRequest(float(number), 100 + number, 10) for number in range(50)]
    plan = slo_plan("class:a@0.5:ttft=1s+-50%; class:b@0.5:ttft=9s", CHOICE)
    first = SloAssignment(plan, IDLE, 3).slos_of(requests)
    assert first == SloAssignment(plan, IDLE, 3).slos_of(requests)
    assert first != SloAssignment(plan, IDLE, 4).slos_of(requests)


def test_classes_get_their_share_of_the_requests() -> None:
    plan = slo_plan("class:chat@3:ttft=1s;class:batch@1:jct=600s", CHOICE)
    requests = [TraceRequest(float(number), 10, 10) for number in range(4000)]
    names = [slo.request_class for slo in SloAssignment(plan, IDLE, 1).slos_of(requests)]
    assert names.count("chat") == pytest.approx(3000, abs=120)


def test_a_tenant_has_goals_of_its_own_and_the_others_share_the_rest() -> None:
    plan = slo_plan("tenant:a:b:ttft=300ms; class:others:ttft=2s", CHOICE)
    requests = [TraceRequest(0.0, 10, 10, tenant=tenant) for tenant in ("a:b", "c")]
    first, second = SloAssignment(plan, IDLE, 1).slos_of(requests)
    assert (first.request_class, first.ttft_s) == ("a:b", 0.3)
    assert (second.request_class, second.ttft_s) == ("others", 2.0)


def test_whoever_has_no_class_has_no_goals() -> None:
    plan = slo_plan("tenant:a:ttft=300ms", CHOICE)
    requests = [TraceRequest(0.0, 10, 10, tenant="b")]
    assert SloAssignment(plan, IDLE, 1).slos_of(requests) == [NO_SLO]


def test_equal_goals_are_one_object() -> None:
    requests = [TraceRequest(0.0, 10, 10), TraceRequest(1.0, 20, 20)]
    first, second = SloAssignment(slo_plan("ttft=1s", CHOICE), IDLE, 1).slos_of(requests)
    assert first is second


@pytest.mark.parametrize(
    ("text", "ttft_s", "token_s"),
    [
        ("ttft=1s,tpot=0.1", 1.0, 0.1),
        ("ttft=2x,tbt=0.1", None, 0.1),
        ("ttft=1s+-10%", None, None),
        ("class:a:ttft=1s;class:b:ttft=2s", None, None),
        ("tbt=1s,tpot=0.1", None, None),
    ],
)
def test_a_plot_marks_only_what_holds_for_all(
    text: str, ttft_s: float | None, token_s: float | None
) -> None:
    plan = slo_plan(text, CHOICE)
    assert (plan.fixed_ttft_s, plan.fixed_token_s) == (ttft_s, token_s)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "0 classes"),
        ("fast", "'fast' is no goal"),
        ("ttft", "ttft is ''"),
        ("ttft=", "ttft is ''"),
        ("ttft=-1s", "ttft is '-1s'"),
        ("ttft=0", "ttft is '0'"),
        ("ttft=1e9", "ttft is '1e9'"),
        ("ttft=5 parsecs", "'parsecs' is no unit"),
        ("ttft=1s,ttft=2s", "given twice"),
        ("ttft=1s+-100%", "less than 100%"),
        ("class:a", "is no class"),
        ("class::ttft=1s", "is no class"),
        ("class:@1:ttft=1s", "has no name"),
        ("class:a@0:ttft=1s", "the share '0'"),
        ("class:a@many:ttft=1s", "the share 'many'"),
        ("class:a:ttft=1s;class:a:ttft=2s", "two classes"),
        ("; ".join(f"class:c{number}:ttft=1s" for number in range(65)), "65 classes"),
        ("none:1", "write none alone"),
        ("accelgen:0", "the factor '0'"),
        ("published:nobody", "known are distserve"),
        ("published:mooncake/tight", "known are strict, middle, loose"),
        ("deadline:a:ttft=1s", "is no class"),
    ],
)
def test_bad_goals_are_refused_with_what_to_write(text: str, problem: str) -> None:
    with pytest.raises(SloTextInvalid) as refused:
        slo_plan(text, CHOICE)
    assert problem in str(refused.value)
    assert str(refused.value).startswith("--slo ")
    assert len(str(refused.value)) < 300


@given(text=st.text(alphabet="ttfpb=,;:@x+-%1.0sm ", max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        plan = slo_plan(text, CHOICE)
    except SloTextInvalid:
        return
    SloAssignment(plan, IDLE, 1).slos_of([TraceRequest(0.0, 10, 10)])


@pytest.mark.parametrize("goal", [(None, None, 0.0), (1.0, 2.0, 0.0), (-1.0, None, 0.0)])
def test_a_goal_is_one_positive_number(goal: tuple[float | None, float | None, float]) -> None:
    with pytest.raises(ValueError, match="a goal is either"):
        Goal(*goal)


def test_a_plan_is_named_as_it_was_given() -> None:
    assert slo_plan("ttft=1s,  tpot=9ms", CHOICE) == SloPlan(
        (SloClass(ttft=Goal(1.0), gaps=((GapRule.MEAN, Goal(0.009)),)),), "ttft=1s, tpot=9ms"
    )
