"""What every batching rule promises, whatever the state: one suite over all of them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from scheduling.batch_time import BatchShape, BatchTime
from scheduling.batch_time_online import OnlineBatchTime
from scheduling.batching import BatchingRule, IterationChoice, IterationState, PromptWork
from scheduling.batching_rules import (
    Filling,
    FillToTarget,
    PromptsFirst,
    WaitingRatio,
    WholePromptsMixed,
)
from scheduling.deadline_fill import DeadlineFill
from scheduling.dynamic_chunk import DynamicChunk, IterationGoal
from scheduling.feedback_queues import FeedbackQueues
from scheduling.mlfq import MlfqSettings
from scheduling.modelled_filling import FillToKnee, FillWithinGoal

MODEL = BatchTime(
    fixed_s=0.004,
    bends=((0, 1e-5), (256, 9e-5)),
    per_sequence_s=2e-5,
    per_context_token_s=1e-7,
    per_prompt_pair_s=1e-8,
)
LIMIT = 256
FLOOR = 16
PROPORTIONAL = BatchTime(fixed_s=0.0, bends=((0, 0.03 / LIMIT),))


@dataclass(frozen=True)
class Case:
    make: Callable[[], BatchingRule]
    # Tokens that an iteration may have beside running sequences, by their number; None: no limit.
    max_tokens: Callable[[int], int] | None = lambda num_decode: max(LIMIT, num_decode)
    keeps_order: bool = True


def dynamic(num_decode: int) -> int:
    return max(LIMIT, num_decode + FLOOR)


CASES = {
    "by-deadline": Case(
        lambda: DeadlineFill(MODEL, LIMIT, min_prompt_tokens=FLOOR), keeps_order=False
    ),
    "chunks-to-target": Case(lambda: FillToTarget(LIMIT)),
    "sarathi": Case(lambda: FillWithinGoal(MODEL, LIMIT, min_prompt_tokens=FLOOR)),
    "whole-to-target": Case(lambda: FillToTarget(LIMIT, Filling.WHOLE)),
    "fit-to-target": Case(lambda: FillToTarget(LIMIT, Filling.FIT), keeps_order=False),
    "ecoserve": Case(lambda: FillToKnee(MODEL, LIMIT), keeps_order=False),
    "vllm": Case(lambda: PromptsFirst(LIMIT, max_seqs=24)),
    "orca": Case(lambda: WholePromptsMixed(max_seqs=24), max_tokens=None),
    "orca-with-a-limit": Case(lambda: WholePromptsMixed(max_seqs=24, max_tokens=LIMIT)),
    "fastserve-without-queues": Case(
        lambda: FeedbackQueues(OnlineBatchTime(), MlfqSettings(24, LIMIT))
    ),
    "tgi": Case(lambda: WaitingRatio(LIMIT)),
    "tgi-chunking": Case(lambda: WaitingRatio(LIMIT, is_chunking=True)),
    "accelgen": Case(
        lambda: DynamicChunk(PROPORTIONAL, LIMIT, min_prompt_tokens=FLOOR),
        max_tokens=dynamic,
        keeps_order=False,
    ),
    "accelgen-with-a-model": Case(
        lambda: DynamicChunk(
            MODEL, LIMIT, IterationGoal.NEXT_TOKEN, gamma_s=0.2, min_prompt_tokens=FLOOR
        ),
        max_tokens=dynamic,
        keeps_order=False,
    ),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@st.composite
def states(draw: st.DrawFn) -> IterationState:
    """A worker at some moment, with what is begun, what may begin and what may not."""
    now = 100.0
    num_decode = draw(st.integers(0, 300))
    work = st.builds(
        PromptWork,
        num_missing_tokens=st.integers(1, 2 * LIMIT),
        num_computed_tokens=st.integers(0, 1000),
        due_at_s=st.one_of(st.just(math.inf), st.floats(now - 2, now + 10)),
        num_needed_blocks=st.integers(0, 20),
    )
    prompts = draw(st.lists(work, max_size=8))
    num_begun = draw(st.integers(0, len(prompts)))
    num_startable = draw(st.integers(0, 8))
    needed = sum(p.num_needed_blocks for p in prompts[num_begun : num_begun + num_startable])
    tpot_s = draw(st.floats(0.001, 0.2)) if num_decode else math.inf
    return IterationState(
        now=now,
        num_decode=num_decode,
        decode_context=num_decode * draw(st.integers(1, 500)),
        next_token_due_at_s=now + tpot_s * draw(st.floats(-1, 1)) if num_decode else math.inf,
        tightest_tpot_s=tpot_s,
        num_steps_without_prompt=draw(st.integers(0, 40)),
        prompts=prompts,
        num_startable=num_startable,
        num_begun=num_begun,
        num_free_blocks=needed + draw(st.integers(0, 10)),
        num_blocks=draw(st.sampled_from([0, 500])),
    )


def check(case: Case, state: IterationState, choice: IterationChoice) -> None:
    """Everything that a single choice must keep."""
    indices = [index for index, _ in choice.chunks]
    assert len(set(indices)) == len(indices), "no prompt twice"
    for index, num_tokens in choice.chunks:
        assert 0 <= index < state.num_choosable
        assert 0 < num_tokens <= state.prompts[index].num_missing_tokens
    num_decode = state.num_decode if choice.has_decodes else 0
    if case.max_tokens is not None:
        num_tokens = num_decode + choice.num_prompt_tokens
        assert num_tokens <= case.max_tokens(state.num_decode)
    if case.keeps_order:
        new = sorted(index for index in indices if index >= state.num_in_progress)
        assert new == list(range(state.num_in_progress, state.num_in_progress + len(new)))
    if state.num_decode or state.num_choosable:
        assert num_decode + choice.num_prompt_tokens > 0, "somebody makes progress"


# Drawing a state takes longer than all rules do.
@given(state=states())
def test_limits_order_and_progress_hold_in_every_state(state: IterationState) -> None:
    for name, case in CASES.items():
        note(name)
        check(case, state, case.make().choose(state))


@given(state=states())
def test_the_same_state_gives_the_same_choice(state: IterationState) -> None:
    for name, case in CASES.items():
        note(name)
        rule = case.make()
        assert rule.choose(state) == rule.choose(state) == case.make().choose(state)


class Worker:
    """Computes what a rule chooses, until nothing is left."""

    def __init__(self, case: Case, jobs: list[tuple[int, int]], num_slots: int) -> None:
        self.case = case
        self.rule = case.make()
        self.num_slots = num_slots
        self.now = 0.0
        self.num_steps_without_prompt = 0
        # (missing, computed, output tokens); the due time is that of the position.
        self.waiting = [(prompt, 0, output) for prompt, output in jobs]
        self.begun: list[tuple[int, int, int]] = []
        # Output tokens to come.
        self.running: list[int] = []

    def state(self) -> IterationState:
        free = self.num_slots - len(self.begun) - len(self.running)
        tpot_s = 0.02 if self.running else math.inf
        return IterationState(
            now=self.now,
            num_decode=len(self.running),
            decode_context=100 * len(self.running),
            next_token_due_at_s=self.now + tpot_s,
            tightest_tpot_s=tpot_s,
            num_steps_without_prompt=self.num_steps_without_prompt,
            prompts=[PromptWork(m, c, 1.0 + m / 100) for m, c, _ in [*self.begun, *self.waiting]],
            num_startable=max(0, free),
            num_begun=len(self.begun),
        )

    def step(self) -> None:
        state = self.state()
        choice = self.rule.choose(state)
        check(self.case, state, choice)
        tokens_by_index = dict(choice.chunks)
        if choice.has_decodes:
            self.running = [left - 1 for left in self.running if left > 1]
        begun: list[tuple[int, int, int]] = []
        waiting: list[tuple[int, int, int]] = []
        for index, (missing, computed, output) in enumerate([*self.begun, *self.waiting]):
            num_tokens = tokens_by_index.get(index, 0)
            if num_tokens == missing:
                self.running += [output] * (output > 0)
            elif num_tokens or index < len(self.begun):
                begun.append((missing - num_tokens, computed + num_tokens, output))
            else:
                waiting.append((missing, computed, output))
        self.begun, self.waiting = begun, waiting
        self.num_steps_without_prompt = 0 if choice.chunks else self.num_steps_without_prompt + 1
        num_decode = state.num_decode if choice.has_decodes else 0
        self.now += MODEL.seconds(
            BatchShape(num_decode, 100 * num_decode, choice.num_prompt_tokens)
        )


@each_case
@settings(max_examples=40)
@given(
    jobs=st.lists(st.tuples(st.integers(1, 700), st.integers(0, 60)), min_size=1, max_size=12),
    num_slots=st.integers(1, 6),
)
def test_all_work_ends(case: Case, jobs: list[tuple[int, int]], num_slots: int) -> None:
    worker = Worker(case, jobs, num_slots)
    # Each iteration computes a token at least: `check` says so.
    for _ in range(sum(prompt + output + 1 for prompt, output in jobs) + 1):
        if not (worker.waiting or worker.begun or worker.running):
            return
        worker.step()
    raise AssertionError("the rule went on without an end")


def test_what_is_begun_is_told_by_its_number_or_by_what_is_computed() -> None:
    cached = PromptWork(num_missing_tokens=10, num_computed_tokens=16, due_at_s=1.0)
    state = IterationState(0.0, 0, 0, math.inf, math.inf, 0, [cached, cached], num_startable=1)
    assert (state.num_in_progress, state.num_choosable) == (2, 2)
    state = IterationState(
        0.0, 0, 0, math.inf, math.inf, 0, [cached, cached], num_startable=1, num_begun=0
    )
    assert (state.num_in_progress, state.num_choosable) == (0, 1)
