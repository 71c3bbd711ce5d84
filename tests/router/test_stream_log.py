"""The log of a stream: what comes out is what went in, and the collector leaves it alone."""

import gc
from array import array

from hypothesis import given
from hypothesis import strategies as st

from router.events import EmitFinished, EmitPromptLogprobs, EmitTokens, PhaseTimings
from router.stream_log import Emission, Starts, StreamLog
from scheduling.ids import RequestId, TaskId
from scheduling.messages import TokensEmitted
from scheduling.sampling import PromptLogprobs, TokenLogprobs

ID = RequestId("r")
TIMINGS = PhaseTimings(0, 0, 0, 0, 0, 0, None, 0, 0, 0, "", "", "", False, 0, 0)
TOKENS = st.builds(
    TokensEmitted,
    task_id=st.sampled_from([TaskId("r/0~1"), TaskId("r/0~2")]),
    first_token_index=st.integers(0, 5),
    token_ids=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    text=st.text(max_size=3),
    logprobs=st.sampled_from([(), (TokenLogprobs(-0.5, ()),)]),
    finish_reason=st.sampled_from([None, None, "stop"]),
    matched_stop=st.sampled_from([None, None, "x", 5]),
)
EMISSIONS = st.one_of(
    st.builds(EmitTokens, st.just(ID), st.integers(0, 2), TOKENS),
    st.builds(EmitFinished, st.just(ID), st.just(0), st.just("stop"), st.none(), st.just(2),
              st.just(TIMINGS)),
)  # fmt: skip


def seen_by_callers(emissions: list[Emission]) -> list[object]:
    """Token ids and text of each answer, cut where something else comes between."""
    ids: dict[int, list[int]] = {}
    texts: dict[int, str] = {}
    seen: list[object] = []
    for emission in emissions:
        if isinstance(emission, EmitTokens):
            ids.setdefault(emission.index, []).extend(emission.tokens.token_ids)
            texts[emission.index] = texts.get(emission.index, "") + emission.tokens.text
            seen += emission.tokens.logprobs
        else:
            seen += [dict(ids), dict(texts), emission]
            ids, texts = {}, {}
    return [*seen, ids, texts]


@given(st.lists(EMISSIONS, max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_any_part_of_it_is_what_was_appended(
    emissions: list[Emission], start: int, end: int
) -> None:
    log = StreamLog(ID)
    for emission in emissions:
        log.append(emission)
    assert list(log) == emissions
    assert len(log) == len(emissions)
    assert log.between(start, end) == emissions[start:end]


@given(st.lists(EMISSIONS, max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_merged_tokens_are_the_same_tokens_in_the_same_order(
    emissions: list[Emission], start: int, end: int
) -> None:
    log = StreamLog(ID)
    for emission in emissions:
        log.append(emission)
    assert seen_by_callers(log.merged(start, end)) == seen_by_callers(emissions[start:end])


def test_plain_tokens_that_follow_each_other_become_one_emission() -> None:
    log = StreamLog(ID)
    task = TaskId("r/0~1")
    last = EmitTokens(ID, 0, TokensEmitted(task, 3, (9,), "d", finish_reason="stop"))
    for emission in (
        EmitTokens(ID, 0, TokensEmitted(task, 0, (5,), "a")),
        EmitTokens(ID, 0, TokensEmitted(task, 1, (6,), "")),
        EmitTokens(ID, 1, TokensEmitted(task, 0, (7,), "b")),
        EmitTokens(ID, 0, TokensEmitted(task, 2, (8,), "c")),
        last,
    ):
        log.append(emission)
    assert log.merged(0, 5) == [
        EmitTokens(ID, 0, TokensEmitted(task, 0, (5, 6), "a")),
        EmitTokens(ID, 1, TokensEmitted(task, 0, (7,), "b")),
        EmitTokens(ID, 0, TokensEmitted(task, 2, (8,), "c")),
        last,
    ]


def test_plain_tokens_leave_nothing_for_the_collector_to_visit() -> None:
    log = StreamLog(ID)
    for number in range(1000):
        tokens = TokensEmitted(TaskId(f"r/{0}~1"), number, (number,), " the")
        log.append(EmitTokens(ID, 0, tokens))
    gc.collect()
    num_visited = sum(gc.is_tracked(entry) for entry in log._entries)
    assert (num_visited, len(log)) == (0, 1000)


def test_logprobs_of_the_prompt_are_told_from_tokens() -> None:
    log = StreamLog(ID)
    scored = PromptLogprobs(1, array("f", [-0.5]), array("I"), array("f"))
    log.append(EmitPromptLogprobs(ID, scored))
    log.append(EmitTokens(ID, 0, TokensEmitted(TaskId("r/0~1"), 0, (5,), "x")))
    assert [log.is_prompt(0), log.is_prompt(1)] == [True, False]


# Of one step: the answer, how many tokens it gets at once, whether with logprobs, whether it ends.
STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 3), st.booleans(), st.sampled_from([0, 0, 0, 1])),
    max_size=12,
)


def answers_of(num_prompt: int, steps: list[tuple[int, int, bool, int]]) -> list[Emission]:
    """Three answers as they come: the logprobs of their prompt, and then tokens in order."""
    emissions: list[Emission] = [
        EmitPromptLogprobs(ID, PromptLogprobs(n + 1, array("f", [-0.5]), array("I"), array("f")))
        for n in range(num_prompt)
    ]
    nexts: list[int | None] = [0, 0, 0]
    for index, count, has_logprobs, is_last in steps:
        first = nexts[index]
        if first is None:
            continue
        ids = tuple(range(first, first + count))
        scored = (TokenLogprobs(-0.5, ((1, -0.5),) * 20),) * count if has_logprobs else ()
        tokens = TokensEmitted(TaskId("r/0~1"), first, ids, "x" * count, scored)
        emissions.append(EmitTokens(ID, index, tokens))
        nexts[index] = first + count
        if is_last:
            emissions.append(EmitFinished(ID, index, "stop", None, first + count, TIMINGS))
            nexts[index] = None
    return emissions


def starts_behind(emissions: list[Emission]) -> Starts:
    """What a caller says who has got these."""
    starts: list[int | None] = [0, 0, 0]
    for emission in emissions:
        if isinstance(emission, EmitTokens):
            tokens = emission.tokens
            starts[emission.index] = tokens.first_token_index + len(tokens.token_ids)
        elif isinstance(emission, EmitFinished):
            starts[emission.index] = None
    return tuple(starts)


def log_of(emissions: list[Emission]) -> StreamLog:
    log = StreamLog(ID)
    for emission in emissions:
        log.append(emission)
    return log


@given(st.integers(0, 2), STEPS, st.integers(0, 16), st.integers(0, 20_000))
def test_a_log_without_its_beginning_serves_exactly_those_who_have_it(
    num_prompt: int, steps: list[tuple[int, int, bool, int]], most: int, max_bytes: int
) -> None:
    emissions = answers_of(num_prompt, steps)
    log = log_of(emissions)
    most = min(most, len(emissions))
    num_dropped = log.drop(most, max_bytes)
    assert list(log) == emissions[num_dropped:]
    assert log.num_bytes == log_of(emissions[num_dropped:]).num_bytes
    # No more than was to be, and no less.
    assert num_dropped == most or log.num_bytes <= max_bytes
    if num_dropped:
        assert log_of(emissions[num_dropped - 1 :]).num_bytes > max_bytes
    for num_read in range(len(emissions) + 1):
        starts = starts_behind(emissions[:num_read])
        if num_read < num_dropped:
            assert not log.can_serve(starts)
        elif any(start != 0 for start in starts) or not (num_prompt and num_dropped):
            assert log.can_serve(starts)
    assert log.can_serve(()) == (num_dropped == 0)


def test_nobody_is_served_from_the_middle_of_an_emission_without_the_beginning() -> None:
    """Text cannot be cut at a token, and the beginning is not there to be sent again."""
    log = log_of(answers_of(0, [(0, 1, False, 0), (0, 3, False, 0), (0, 1, False, 0)]))
    assert log.can_serve((3, 0, 0)), "it is sent whole"
    log.drop(1, 0)
    assert [start for start in range(6) if log.can_serve((start, 0, 0))] == [1, 4, 5]


def test_a_log_that_is_cleared_serves_nobody_and_takes_no_memory() -> None:
    log = log_of(answers_of(1, [(0, 1, False, 0), (1, 3, True, 1)]))
    log.clear()
    assert (len(log), log.num_bytes) == (0, 0)
    assert not log.can_serve(())
