"""The router asks the rules of the policy: who yields, who may join, how fast prompts are."""

from dataclasses import replace

import pytest

from router.state import RouterSettings
from router.testing import PREFILL, CoreUnderTest, commands, hello_of, spec_of, tokens
from scheduling.admission import FuturePeak, WhatIsReserved
from scheduling.ids import RequestId
from scheduling.messages import AdmitPrompt, PrefillStarted, StartPrefill, TaskReleased

MIXED = "mixed-0"


def one_at_a_time(policy: str) -> CoreUnderTest:
    """A prompt that is being computed keeps all others in the queue."""
    core = CoreUnderTest(settings=RouterSettings(max_backlog_tokens=1), policy=policy)
    core.ask(spec_of(request_id=RequestId("first"), max_tokens=1))
    core.ask(spec_of(request_id=RequestId("late"), ttft_s=1.0))
    core.ask(spec_of(request_id=RequestId("timely"), ttft_s=60.0))
    return core


@pytest.mark.parametrize(("policy", "next_one"), [("default", "timely"), ("ecoserve", "late")])
def test_a_prompt_that_cannot_be_in_time_any_more_yields_where_the_policy_says_so(
    policy: str, next_one: str
) -> None:
    core = one_at_a_time(policy)
    core.now = 5.0
    task = core.task_id(request_id="first")
    core.report(PREFILL, PrefillStarted(task))
    expected = core.task_id(request_id=next_one)
    sent = core.report(PREFILL, tokens(task, 0, 11, finish="length"), TaskReleased(task))
    started = [what.task_id for _, what in commands(sent) if isinstance(what, StartPrefill)]
    assert started == [expected]


@pytest.mark.parametrize(("admission", "num_started"), [(FuturePeak(), 1), (WhatIsReserved(), 2)])
def test_who_would_not_fit_later_does_not_join_though_there_is_room_now(
    admission: FuturePeak | WhatIsReserved, num_started: int
) -> None:
    core = CoreUnderTest(workers=(hello_of(MIXED, num_blocks=64),))
    state = core.core.state
    state.policy = replace(state.policy, admission=admission)
    spec = spec_of(max_tokens=200)
    for _ in range(50):
        state.predictor.observe(spec.features(), 150)
    sent = [*core.ask(spec), *core.ask(replace(spec, request_id=RequestId("other")))]
    assert sum(isinstance(what, AdmitPrompt) for _, what in commands(sent)) == num_started


def test_the_pace_of_prompts_is_learnt_from_their_first_tokens() -> None:
    core = CoreUnderTest()
    core.ask(spec_of(num_prompt=8))
    task = core.task_id()
    core.report(PREFILL, PrefillStarted(task))
    core.now = 0.8
    core.report(PREFILL, tokens(task, 0, 11))
    assert core.core.state.prefill_pace.seconds(80) == pytest.approx(8.0)
