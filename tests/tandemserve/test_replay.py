"""Exactly once, whatever the cuts: the property on which resuming rests."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandemserve.errors import ProtocolViolation
from tandemserve.replay import Replay
from tandemserve.results import (
    Accepted,
    Delta,
    Event,
    Finished,
    FinishReason,
    PromptLogprobs,
    Timings,
    TokenLogprobs,
    Usage,
)

ACCEPTED = Accepted(model="m", num_prompt_tokens=1, attached=False, seed=5)
TIMINGS = Timings(
    *(0.0,) * 6, None, 0.0, 0, 0, transport="", prefill_worker="", decode_worker="",
    early_binding=False, num_preemptions=0, num_migrations=0,
)  # fmt: skip


def finished(index: int) -> Finished:
    return Finished(index, FinishReason.STOP, None, Usage(1, 1, 0), TIMINGS)


@dataclass(frozen=True)
class Answer:
    """A true answer: the text that each token adds (none while a character is incomplete)."""

    token_ids: tuple[int, ...]
    pieces: tuple[str, ...]

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@st.composite
def answers(draw: st.DrawFn) -> Answer:
    pieces = draw(st.lists(st.sampled_from(["", "a", "é", "bc", "def"]), max_size=12))
    return Answer(
        tuple(draw(st.integers(0, 99)) for _ in pieces),
        tuple(pieces),
    )


@st.composite
def deliveries(draw: st.DrawFn, answer: Answer, index: int) -> list[Event]:
    """One way to send the answer: any cuts between tokens, and text that lags behind at will."""
    events: list[Event] = []
    position, num_sent_chars = 0, 0
    num_tokens = len(answer.token_ids)
    while position < num_tokens:
        end = draw(st.integers(position + 1, num_tokens))
        num_ready_chars = len("".join(answer.pieces[:end]))
        num_chars = (
            draw(st.integers(num_sent_chars, num_ready_chars))
            if end < num_tokens
            else num_ready_chars
        )
        events.append(
            Delta(
                index,
                position,
                answer.token_ids[position:end],
                answer.text[num_sent_chars:num_chars],
                tuple(TokenLogprobs(-float(i), ()) for i in range(position, end)),
            )
        )
        position, num_sent_chars = end, num_chars
    return [*events, finished(index)]


@st.composite
def interleaved(draw: st.DrawFn, truth: list[Answer]) -> list[Event]:
    pending = [draw(deliveries(answer, index)) for index, answer in enumerate(truth)]
    merged: list[Event] = []
    while any(pending):
        chosen = draw(st.sampled_from([events for events in pending if events]))
        merged.append(chosen.pop(0))
    return merged


@given(st.data())
def test_every_token_and_character_arrives_exactly_once_over_any_broken_attempts(
    data: st.DataObject,
) -> None:
    truth = data.draw(st.lists(answers(), min_size=1, max_size=3))
    replay = Replay("r", len(truth))
    seen: list[Event] = []
    num_broken_attempts = data.draw(st.integers(0, 4))
    for attempt in range(num_broken_attempts + 1):
        events = data.draw(interleaved(truth))
        if attempt < num_broken_attempts:
            events = events[: data.draw(st.integers(0, len(events)))]
        replay.begin_attempt()
        replay.receive("r", ACCEPTED)
        news = [replay.receive("r", event) for event in events]
        seen += [event for event in news if event is not None]
    replay.end()
    completion = replay.completion()
    for index, answer in enumerate(truth):
        deltas = [e for e in seen if isinstance(e, Delta) and e.index == index]
        token_ids: list[int] = []
        for delta in deltas:
            assert delta.first_token_index == len(token_ids)
            assert delta.token_ids or delta.text
            assert [entry.logprob for entry in delta.logprobs] == [
                -float(len(token_ids) + i) for i in range(len(delta.token_ids))
            ]
            token_ids += delta.token_ids
        assert tuple(token_ids) == answer.token_ids
        assert "".join(delta.text for delta in deltas) == answer.text
        assert sum(isinstance(e, Finished) and e.index == index for e in seen) == 1
        assert completion.choices[index].text == answer.text
        assert completion.choices[index].token_ids == answer.token_ids
        assert len(completion.choices[index].logprobs) == len(answer.token_ids)


@given(st.data(), st.integers(1, 9))
def test_logprobs_of_the_prompt_arrive_once_over_any_broken_attempts(
    data: st.DataObject, num_tokens: int
) -> None:
    truth = [TokenLogprobs(-float(i), ()) for i in range(1, num_tokens)]
    replay = Replay("r", 1)
    seen: list[TokenLogprobs] = []
    for is_last in (False, False, True):
        replay.begin_attempt()
        replay.receive("r", ACCEPTED)
        cuts = sorted(data.draw(st.sets(st.integers(1, num_tokens - 1)))) if truth else []
        pieces = zip([1, *cuts], [*cuts, num_tokens], strict=True)
        for begin, end in list(pieces)[: None if is_last else data.draw(st.integers(0, 4))]:
            event = PromptLogprobs(begin, tuple(truth[begin - 1 : end - 1]))
            news = replay.receive("r", event)
            if news is not None:
                assert isinstance(news, PromptLogprobs)
                assert news.first_token_index == len(seen) + 1
                assert news.logprobs
                seen += news.logprobs
    replay.receive("r", finished(0))
    assert seen == truth
    assert replay.completion().prompt_logprobs == ((None, *truth) if truth else ())


@pytest.mark.parametrize("first", [0, 2])
def test_logprobs_that_leave_a_prompt_token_out_are_refused(first: int) -> None:
    replay = Replay("r", 1)
    replay.begin_attempt()
    replay.receive("r", ACCEPTED)
    with pytest.raises(ProtocolViolation, match=f"prompt token {first} came where 1 was due"):
        replay.receive("r", PromptLogprobs(first, (TokenLogprobs(-1.0, ()),)))


def told(answer: Answer, start: int, data: st.DataObject) -> list[Event]:
    """What a router sends that computes on from `start`: text is a function of the tokens."""
    events: list[Event] = []
    while start < len(answer.token_ids):
        end = data.draw(st.integers(start + 1, len(answer.token_ids)))
        text = "".join(answer.pieces[start:end])
        logprobs = tuple(TokenLogprobs(-float(i), ()) for i in range(start, end))
        events.append(Delta(0, start, answer.token_ids[start:end], text, logprobs))
        start = end
    return [*events, finished(0)]


@given(st.data())
def test_every_token_arrives_exactly_once_when_other_routers_go_on_from_the_checkpoint(
    data: st.DataObject,
) -> None:
    truth = data.draw(answers().filter(lambda answer: answer.token_ids))
    replay, seen, start = Replay("r", 1), list[Event](), 0
    num_broken_attempts = data.draw(st.integers(0, 4))
    for attempt in range(num_broken_attempts + 1):
        events = told(truth, start, data)
        if attempt < num_broken_attempts:
            events = events[: data.draw(st.integers(0, len(events) - 1))]
        replay.begin_attempt()
        replay.receive("r", ACCEPTED)
        seen += [news for event in events if (news := replay.receive("r", event)) is not None]
        ((_, token_ids, is_finished),) = replay.received()
        if attempt < num_broken_attempts:
            assert token_ids == truth.token_ids[: len(token_ids)]
            # The newest delta is left out: it may have been the last.
            assert len(token_ids) < len(truth.token_ids)
            assert start <= len(token_ids)
            assert not is_finished
        start = len(token_ids)
    replay.end()
    deltas = [event for event in seen if isinstance(event, Delta)]
    assert tuple(t for delta in deltas for t in delta.token_ids) == truth.token_ids
    assert "".join(delta.text for delta in deltas) == truth.text
    assert replay.completion().choices[0].text == truth.text


def test_an_answer_that_had_ended_may_be_left_out_of_a_later_attempt() -> None:
    replay = Replay("r", 2)
    replay.begin_attempt()
    replay.receive("r", ACCEPTED)
    second: list[Event] = [Delta(1, 0, (2,), "b"), Delta(1, 1, (3,), "c")]
    for event in [Delta(0, 0, (1,), "a"), finished(0), *second]:
        replay.receive("r", event)
    assert replay.received() == ((0, (), True), (1, (2,), False))
    replay.begin_attempt()
    replay.receive("r", ACCEPTED)
    replay.receive("r", Delta(1, 1, (3,), "c"))
    replay.receive("r", finished(1))
    replay.end()
    assert [choice.text for choice in replay.completion().choices] == ["a", "bc"]


def resumed(*first: Event) -> Replay:
    """A replay whose first attempt broke after these events."""
    replay = Replay("r", 1)
    replay.begin_attempt()
    replay.receive("r", ACCEPTED)
    for event in first:
        replay.receive("r", event)
    replay.begin_attempt()
    replay.receive("r", ACCEPTED)
    return replay


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        (Delta(0, 0, (1, 3), "ab"), "other tokens"),
        (Delta(0, 0, (1, 2), "ax"), "other text"),
        (Delta(0, 1, (2,), "b"), "jumps to token 1 where 0 was due"),
        (finished(0), "fewer tokens"),
    ],
)
def test_another_answer_is_not_mixed_in(second: Event, problem: str) -> None:
    replay = resumed(Delta(0, 0, (1, 2), "ab"))
    with pytest.raises(ProtocolViolation, match=problem):
        replay.receive("r", second)


def test_a_replay_that_ends_with_less_text_is_refused() -> None:
    replay = resumed(Delta(0, 0, (1, 2), "ab"))
    replay.receive("r", Delta(0, 0, (1, 2), "a"))
    with pytest.raises(ProtocolViolation, match="less text"):
        replay.receive("r", finished(0))


def test_logprobs_must_match_their_tokens() -> None:
    replay = resumed()
    with pytest.raises(ProtocolViolation, match="1 logprobs came with 2 tokens"):
        replay.receive("r", Delta(0, 0, (1, 2), "ab", (TokenLogprobs(-1.0, ()),)))


def test_a_refused_message_leaves_nothing_behind() -> None:
    replay = resumed(Delta(0, 0, (1,), "a"))
    with pytest.raises(ProtocolViolation):
        replay.receive("r", Delta(0, 0, (1, 2), "xy"))
    replay.begin_attempt()
    replay.receive("r", ACCEPTED)
    assert replay.receive("r", Delta(0, 0, (1, 2), "ab")) == Delta(0, 1, (2,), "b")


def test_an_incomplete_answer_is_no_completion() -> None:
    replay = resumed(Delta(0, 0, (1,), "a"))
    assert not replay.is_complete
    with pytest.raises(ProtocolViolation, match="ended before"):
        replay.end()
    with pytest.raises(ProtocolViolation, match="ended before"):
        replay.completion()
