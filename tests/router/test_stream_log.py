"""The log of a stream: what comes out is what went in, and the collector leaves it alone."""

import gc
from array import array

from hypothesis import given
from hypothesis import strategies as st

from router.events import EmitFinished, EmitPromptLogprobs, EmitTokens, PhaseTimings
from router.stream_log import Emission, StreamLog
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
    assert log.num_plain + len(log.others) == len(emissions)


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
    assert (num_visited, log.num_plain, log.num_plain_chars) == (0, 1000, 4000)


def test_logprobs_of_the_prompt_are_told_from_tokens() -> None:
    log = StreamLog(ID)
    scored = PromptLogprobs(1, array("f", [-0.5]), array("I"), array("f"))
    log.append(EmitPromptLogprobs(ID, scored))
    log.append(EmitTokens(ID, 0, TokensEmitted(TaskId("r/0~1"), 0, (5,), "x")))
    assert [log.is_prompt(0), log.is_prompt(1)] == [True, False]
