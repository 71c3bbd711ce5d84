"""Which published goals a model and a trace get, and that they are the published ones."""

import pytest

from simulator.published_slo import PublishedChoice
from simulator.published_slo_rows import PUBLISHED_SLOS
from simulator.slo_text import slo_plan
from simulator.traces.published_slos import AbsoluteLimit, PublishedSlo, SlowdownLimit


def goals(which: str, billions: float = 13, prompt: float = 700, output: float = 200) -> str:
    return slo_plan(which, PublishedChoice(billions, prompt, output)).text


@pytest.mark.parametrize(
    ("billions", "prompt", "output", "expected"),
    [
        # Chat, at three sizes of model.
        (8, 771, 209, "ttft=250ms,tpot=100ms"),
        (13, 1155, 211, "ttft=250ms,tpot=100ms"),
        (70, 771, 209, "ttft=400ms,tpot=100ms"),
        (405, 771, 209, "ttft=4s,tpot=200ms"),
        # Long answers are chat as well.
        (8, 1005, 3100, "ttft=250ms,tpot=100ms"),
        # Long prompts with short answers.
        (13, 2591, 287, "ttft=15s,tpot=150ms"),
        # Very long prompts.
        (70, 12_870, 346, "ttft=30s,tbt_tail10=100ms"),
    ],
)
def test_without_a_name_goals_follow_lengths_and_size(
    billions: float, prompt: float, output: float, expected: str
) -> None:
    assert goals("published", billions, prompt, output) == expected


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("published:mooncake", "ttft=30s,tbt_tail10=100ms"),
        ("published:mooncake/loose", "ttft=30s,tbt_tail10=300ms"),
        ("published:sarathi-serve/relaxed", "tbt_p99=500ms"),
        ("published:splitwise/p99", "ttft=6x,tpot=5x,jct=5x"),
        (
            "published:niyama",
            "class:tier 0@0.3333:ttft=6s; class:tier 1@0.3333:jct=600s; "
            "class:tier 2@0.3333:jct=1800s",
        ),
        ("published:niyama/tier 0", "ttft=6s"),
    ],
)
def test_a_source_and_a_class_can_be_named(which: str, expected: str) -> None:
    assert goals(which) == expected


@pytest.mark.parametrize(
    "which", ["published", *sorted({f"published:{r.source}" for r in PUBLISHED_SLOS})]
)
def test_the_text_of_published_goals_can_be_given_as_goals(which: str) -> None:
    choice = PublishedChoice(13, 700, 200)
    plan = slo_plan(which, choice)
    again = slo_plan(plan.text, choice)
    assert [one.ttft for one in again.classes] == [one.ttft for one in plan.classes]
    assert [one.gaps for one in again.classes] == [one.gaps for one in plan.classes]
    assert plan.source


def test_rows_of_ones_own_take_the_place_of_the_published_ones() -> None:
    row = PublishedSlo(
        "us", "Ours-1B", "chat", "x", None, SlowdownLimit(2), AbsoluteLimit(0.1), "", "", "", ""
    )
    choice = PublishedChoice(1, 700, 200, [row])
    assert slo_plan("published:us", choice).text == "ttft=2x,tpot=100ms"
    with pytest.raises(ValueError, match="no published goals for chat"):
        slo_plan("published", choice)
