"""What follows from when a whole answer is due (PAPERS 1.2m, 3.2b), through the router's core."""

from dataclasses import replace
from typing import Any

import pytest

from router.events import RequestSpec, TimeReached
from router.state import RouterSettings
from router.testing import (
    DECODE,
    PREFILL,
    CoreUnderTest,
    commands,
    of_type,
    spec_of,
    through_prefill,
    tokens,
)
from scheduling.goals import Goals
from scheduling.messages import PrefillStarted, StartPrefill, TaskReleased

SHORT, LONG = 4, 30


# Both first tokens are due alike; of the longer answer all is due later.
@pytest.mark.parametrize(("policy", "first"), [("ecoserve", "short"), ("cacheopt", "long")])
def test_of_prompts_that_are_due_alike_the_one_whose_answer_is_due_first_goes_first(
    policy: str, first: str
) -> None:
    core = CoreUnderTest(settings=RouterSettings(max_backlog_tokens=1), policy=policy)
    core.ask(spec_of("running", max_tokens=1))
    running = core.task_id(request_id="running")
    for name, max_tokens, num_prompt in (("long", LONG, 9), ("short", SHORT, 4)):
        core.ask(
            spec_of(name, num_prompt=num_prompt, max_tokens=max_tokens, ttft_s=2.0, tpot_s=1.0)
        )
    last = tokens(running, 0, 11, finish="length")
    sent = core.report(PREFILL, PrefillStarted(running), last, TaskReleased(running))
    (started,) = of_type((what for _, what in commands(sent)), StartPrefill)
    assert started.task_id == core.task_id(request_id=first)


def test_a_deadline_that_comes_sooner_counts() -> None:
    core = CoreUnderTest(policy="ecoserve")
    core.ask(spec_of("this", max_tokens=LONG, ttft_s=2.0, tpot_s=1.0, deadline_s=5.0))
    sequence = core.core.state.sequence_by_task[core.task_id(request_id="this")]
    assert sequence.as_waiting().answer_due_at_s == core.now + 5.0


def test_a_goal_for_the_whole_answer_that_comes_sooner_counts() -> None:
    core = CoreUnderTest(policy="ecoserve")
    core.ask(spec_of("this", max_tokens=LONG, ttft_s=2.0, tpot_s=1.0, jct_s=5.0))
    sequence = core.core.state.sequence_by_task[core.task_id(request_id="this")]
    assert sequence.as_waiting().answer_due_at_s == core.now + 5.0


def test_a_missed_goal_for_the_whole_answer_ends_nothing() -> None:
    core = CoreUnderTest()
    core.ask(spec_of("this", jct_s=0.5))
    core.now = 100.0
    core.tell(TimeReached())
    assert core.task_id(request_id="this") in core.core.state.sequence_by_task


def end_alone(name: str, jct_s: float, **fields: Any) -> RequestSpec:
    """Its caller cares for nothing but the end."""
    goals = Goals.wished(None, None, jct_s, Goals(1.0, 0.1))
    wishes = {"ttft_s": goals.ttft_s, "tpot_s": goals.tpot_s, "jct_s": goals.jct_s}
    return spec_of(name, **{"max_tokens": LONG, **wishes, **fields})


def next_started(core: CoreUnderTest, *specs: RequestSpec) -> str:
    """Which of these goes when the one that keeps them waiting has ended."""
    core.ask(spec_of("running", max_tokens=1))
    running = core.task_id(request_id="running")
    for spec in specs:
        core.ask(spec)
    core.report(PREFILL, PrefillStarted(running))
    core.now += 1.0
    last = tokens(running, 0, 11, finish="length")
    sent = core.report(PREFILL, last, TaskReleased(running))
    (started,) = of_type((what for _, what in commands(sent)), StartPrefill)
    return core.core.state.sequence_by_task[started.task_id].request_id


@pytest.mark.parametrize("policy", ["default", "ecoserve", "cacheopt", "accelgen"])
def test_of_answers_with_a_goal_for_their_ends_alone_the_one_due_first_goes_first(
    policy: str,
) -> None:
    core = CoreUnderTest(settings=RouterSettings(max_backlog_tokens=1), policy=policy)
    assert next_started(core, end_alone("late", 600.0), end_alone("soon", 60.0)) == "soon"


def test_an_answer_that_cannot_end_in_time_any_more_yields() -> None:
    settings = RouterSettings(max_backlog_tokens=1)
    core = CoreUnderTest(settings=settings, policy="default")
    # As answers have been lately, a token takes a second.
    core.core.state.answer_pace.observe(10, 10.0)
    in_vain, timely = end_alone("in vain", 5.0), end_alone("timely", 60.0)
    assert next_started(core, in_vain, timely) == "timely"
    unyielding = replace(core.core.state.policy, late_yields=False)
    core = CoreUnderTest(settings=settings, policy=unyielding)
    core.core.state.answer_pace.observe(10, 10.0)
    assert next_started(core, in_vain, timely) == "in vain"


def test_a_prompt_from_a_lost_router_that_is_too_late_for_its_first_token_here_yields() -> None:
    core = CoreUnderTest(settings=RouterSettings(max_backlog_tokens=1), policy="default")
    late = spec_of("late", ttft_s=0.5, resumed=((11, 12),))
    assert next_started(core, late, spec_of("timely", ttft_s=10.0)) == "timely"


def test_a_worker_is_told_the_gap_with_which_the_answer_ends_in_time() -> None:
    core = CoreUnderTest()
    core.core.state.answer_pace.observe(10, 0.1)
    sent = core.ask(end_alone("this", 60.0))
    (start,) = of_type((what for _, what in commands(sent)), StartPrefill)
    (sequence,) = core.core.state.sequence_by_task.values()
    assert start.sequence.tpot_s == pytest.approx(60.0 / sequence.predicted.mean)


def test_the_pace_of_answers_is_learnt_while_they_run() -> None:
    core = CoreUnderTest()
    core.ask(spec_of(max_tokens=4))
    task = through_prefill(core)
    assert core.core.state.answer_pace.seconds(10) == 0.0
    core.now += 0.6
    core.report(DECODE, tokens(task, 1, 12, 13, 14, finish="length"))
    assert core.core.state.answer_pace.seconds(10) == pytest.approx(2.0)
