"""A defect that no verdict notices would make every round green."""

from dataclasses import replace

import pytest

from deploy.chaos.drawing import SHORT, draw_plan
from deploy.chaos.oracle import RightAnswer, RightAnswers
from deploy.chaos.plan import Ask, Fate, Strike
from deploy.chaos.record import Record
from deploy.chaos.verdict import (
    LEFT,
    Ending,
    Received,
    has_used_up_tries,
    num_certain_tokens,
    problems_of,
)
from scheduling import sampling
from tandemserve import (
    AnswerView,
    Choice,
    Completion,
    Delta,
    FinishReason,
    RequestHistory,
    RequestView,
    Timeline,
    TimelineEvent,
    Timings,
    TokenLogprobs,
    Usage,
)

TOKENS, TEXT = (5, 6, 7, 8), "word"
LOGPROBS = tuple(sampling.TokenLogprobs(-0.5 * number) for number in range(4))
RIGHT = RightAnswers((RightAnswer(TOKENS, TEXT, "length", None, LOGPROBS),), None, ())
TIMINGS = Timings(0, 0, 0, 0, 0, 0, None, 0, 0, 0, "tcp", "prefill-0", "decode-0", True, 0, 0)
CHOICE = Choice(
    0,
    TEXT,
    TOKENS,
    tuple(TokenLogprobs(entry.logprob, ()) for entry in LOGPROBS),
    FinishReason.LENGTH,
    None,
    Usage(3, 4, 0),
    TIMINGS,
)


def ask(fate: Fate = "finish") -> Ask:
    return replace(draw_plan(1, SHORT).asks[0], fate=fate, num_choices=1)


def received(num_tokens: int) -> list[Received]:
    return [
        Received(list(TOKENS[:num_tokens]), TEXT[:num_tokens], list(CHOICE.logprobs[:num_tokens]))
    ]


def whole(choice: Choice) -> Ending:
    return Ending(Completion("id", "model", 0, (choice,)))


def test_the_undisturbed_answer_is_right() -> None:
    assert problems_of(ask(), RIGHT, received(4), whole(CHOICE)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        replace(CHOICE, token_ids=(5, 6, 7, 9)),
        replace(CHOICE, token_ids=TOKENS[:3]),
        replace(CHOICE, token_ids=(*TOKENS, 8)),
        replace(CHOICE, text="wore"),
        replace(CHOICE, finish_reason=FinishReason.STOP),
        replace(CHOICE, matched_stop="d"),
        replace(CHOICE, logprobs=CHOICE.logprobs[:3]),
        replace(CHOICE, usage=Usage(3, 5, 0)),
    ],
)
def test_a_whole_answer_that_differs_anywhere_is_a_problem(wrong: Choice) -> None:
    assert problems_of(ask(), RIGHT, received(4), whole(wrong))


def test_pieces_that_are_not_the_whole_are_a_problem() -> None:
    assert problems_of(ask(), RIGHT, received(3), whole(CHOICE))


@pytest.mark.parametrize(
    ("fate", "code"),
    [
        ("cancel", "cancelled"),
        ("operator", "cancelled"),
        ("leave", LEFT),
        ("deadline", "deadline_exceeded"),
    ],
)
def test_a_beginning_and_a_fitting_error_are_right(fate: Fate, code: str) -> None:
    for num_tokens in range(5):
        assert problems_of(ask(fate), RIGHT, received(num_tokens), Ending(None, code)) == []


def test_an_error_that_nobody_caused_is_a_problem() -> None:
    ending = Ending(None, "deadline_exceeded", "too late")
    (problem,) = problems_of(ask(), RIGHT, received(2), ending)
    assert "fate finish, but it ended with deadline_exceeded" in problem


def test_workers_may_fail_a_request_only_when_its_history_shows_all_tries() -> None:
    failed = Ending(None, "worker_failed")
    assert problems_of(ask(), RIGHT, received(2), failed)
    assert not problems_of(ask(), RIGHT, received(2), replace(failed, has_used_up_tries=True))
    other = Ending(None, "kv_corrupted", has_used_up_tries=True)
    assert problems_of(ask(), RIGHT, received(2), other)


@pytest.mark.parametrize(
    ("changes", "is_used_up"),
    [
        (("worker_lost",) * 3, True),
        (("worker_lost",) * 2, False),
        (("worker_lost", "preempted", "worker_lost"), False),
        (("worker_lost", "evacuated", "worker_lost"), False),
        (("worker_lost", "evacuated", "worker_lost", "worker_lost"), True),
    ],
)
def test_only_what_workers_failed_uses_tries_up(changes: tuple[str, ...], is_used_up: bool) -> None:
    assert has_used_up_tries(history(changes), 3) == is_used_up


def history(changes: tuple[str, ...]) -> RequestHistory:
    """Of a request with one answer, as a router tells it."""
    num_preemptions = changes.count("preempted")
    num_tries = 1 + len(changes)
    num_migrations = len(changes) - num_preemptions
    answer = AnswerView(0, "failed", 0.0, 0, "", "", "", num_tries, num_preemptions, num_migrations)
    request = RequestView(
        "r", "", "", "", "failed", 1.0, 0.0, None, 4, 4, "worker_failed", "", (answer,)
    )
    events = tuple(
        TimelineEvent(0.0, change, "prompt_queued", "", 0, 0, number, "", None)
        for number, change in enumerate(changes, 2)
    )
    return RequestHistory(request, (Timeline(0, events, 0),))


@pytest.mark.parametrize(
    ("fate", "after_tokens", "number"),
    [("finish", 0, 4), ("deadline", 3, 0), ("cancel", 3, 3), ("leave", 9, 4), ("operator", 0, 0)],
)
def test_what_a_caller_surely_gets_is_known_before_the_round(
    fate: Fate, after_tokens: int, number: int
) -> None:
    assert num_certain_tokens(replace(ask(fate), after_tokens=after_tokens), RIGHT) == number


def test_a_wrong_token_before_an_error_is_a_problem() -> None:
    got = received(3)
    got[0].token_ids[2] = 9
    (problem,) = problems_of(ask("cancel"), RIGHT, got, Ending(None, "cancelled"))
    assert "token 2 of 4 is wrong" in problem


def test_a_gap_and_a_repeat_are_noticed_when_they_come() -> None:
    got = Received()
    assert got.take(Delta(0, 0, (5, 6), "wo")) is None
    assert got.take(Delta(0, 3, (8,), "d")) == "a piece begins at token 3 instead of 2"
    assert got.take(Delta(0, 2, (7,), "r")) == "a piece begins at token 2 instead of 3"


@pytest.mark.parametrize(("at_tokens", "is_problem"), [(0, True), (4, True), (5, False)])
def test_a_strike_that_was_not_reached_is_a_problem_unless_its_tokens_were_forgiven(
    at_tokens: int, is_problem: bool
) -> None:
    told: list[str] = []
    record = Record(told.append)
    record.began(ask(), "r")
    record.ended(ask(), RIGHT, received(2), Ending(None, "worker_failed", "", True))
    assert not record.problems
    record.missed(Strike(0.5, "kill", "decode-0", 1.0), at_tokens, num_certain_tokens=8)
    assert bool(record.problems) == is_problem
    assert "not reached: at 50.0% of the tokens: kill decode-0" in told[-1]
