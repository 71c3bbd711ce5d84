"""EcoServe's queues go by when a whole answer is due: PAPERS 1.2m, through the router's core."""

import pytest

from router.state import RouterSettings
from router.testing import PREFILL, CoreUnderTest, commands, of_type, spec_of, tokens
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
