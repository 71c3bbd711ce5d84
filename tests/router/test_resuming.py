"""Answers that another router lost: what may be sent back, and that they go on right there."""

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from router.core import RouterCore
from router.events import EmitFinished, EmitTokens, PhaseTimings, RequestArrived
from router.resuming import ResumeWishes, ToldAnswer, resume_wishes
from router.stream_log import Emission, Starts
from router.streams import AcceptedInfo, RequestStream
from router.testing import (
    PREFILL,
    CoreUnderTest,
    assert_empty,
    commands,
    of_type,
    spec_of,
    tokens,
)
from router.wire.generate import generate_call
from scheduling.errors import InvalidRequest
from scheduling.ids import RequestId, TaskId
from scheduling.messages import PrefillStarted, StartPrefill, TaskReleased, TokensEmitted
from scheduling.sampling import StopParams
from tandemserve.api.v1 import inference_pb2 as pb

PATIENCE_S = 10.0
ID = RequestId("r")
TIMINGS = PhaseTimings(0, 0, 0, 0, 0, 0, None, 0, 0, 0, "", "", "", False, 0, 0)
STOP = StopParams(4, stop_token_ids=(2,))


def choice(index: int, *token_ids: int, is_finished: bool = False) -> ToldAnswer:
    return ToldAnswer(index, token_ids, is_finished)


def wishes(*choices: ToldAnswer, n: int = 1, **fields: Any) -> ResumeWishes:
    return resume_wishes(n, choices, **fields)


def test_a_new_request_resumes_nothing() -> None:
    assert generate_call(request_of()).resume == ResumeWishes()
    assert generate_call(request_of(resume=pb.Resume())).resume == ResumeWishes()


def test_a_request_says_what_its_caller_has() -> None:
    answers = [
        pb.ResumedChoice(index=1, token_ids=[5]),
        pb.ResumedChoice(index=0, is_finished=True),
    ]
    resume = pb.Resume(choices=answers, seed=0, max_tokens=7)
    call = generate_call(request_of(resume=resume, n=2))
    assert call.resume == ResumeWishes((None, (5,)), 0, 7)
    assert call.stop.max_tokens == 7
    # It is the same question all the time.
    assert call.fingerprint == generate_call(request_of(n=2)).fingerprint


def request_of(**fields: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text="x", **fields)


def test_answers_are_taken_in_order_whatever_order_they_were_sent_in() -> None:
    resume = wishes(choice(2, 5, 6), choice(0, is_finished=True), n=3, seed=9, max_tokens=7)
    assert resume == ResumeWishes((None, (), (5, 6)), 9, 7)
    assert resume.starts == (None, 0, 2)


@pytest.mark.parametrize(
    ("choices", "n", "problem"),
    [
        ((choice(1, 5),), 1, "answer 1 is named twice, or was not asked for"),
        ((choice(0, 5), choice(0, 6)), 2, "answer 0 is named twice"),
        ((choice(0, is_finished=True),), 1, "nothing is left to be computed"),
    ],
)
def test_what_cannot_be_resumed_is_refused(
    choices: tuple[ToldAnswer, ...], n: int, problem: str
) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        wishes(*choices, n=n)


@pytest.mark.parametrize(
    ("token_ids", "problem"),
    [
        ((5, 5, 5, 5), "is complete; leave its newest token out"),
        ((5, 100), "token id outside of the vocabulary of 100"),
        ((2, 5), "goes on after an end token"),
    ],
)
def test_tokens_that_no_answer_begins_with_are_refused(
    token_ids: tuple[int, ...], problem: str
) -> None:
    with pytest.raises(InvalidRequest, match=problem):
        ResumeWishes((token_ids,)).check(STOP, 100)
    ResumeWishes(((5, 99, 3), None, ())).check(STOP, 100)


def test_the_core_computes_on_from_the_tokens_that_are_there() -> None:
    core = CoreUnderTest()
    sent = core.ask(spec_of(num_choices=3, resumed=((11, 12), None, ())))
    starts = of_type([command for _, command in commands(sent)], StartPrefill)
    assert [start.sequence.output_token_ids for start in starts] == [(11, 12), ()]
    # Each draws with the seed of its place among all answers.
    assert [start.sequence.sampling.seed for start in starts] == [5, 7]
    task = starts[0].task_id
    emitted = core.report(PREFILL, tokens(task, 2, 13, finish="stop"), TaskReleased(task))
    (first,) = of_type(emitted, EmitTokens)
    assert first.tokens.first_token_index == 2
    (end,) = of_type(emitted, EmitFinished)
    assert (end.index, end.num_output_tokens, end.timings.tpot_s) == (0, 3, None)
    task = starts[1].task_id
    ended = core.report(PREFILL, tokens(task, 0, 9, finish="stop"), TaskReleased(task))
    assert [action.index for action in of_type(ended, EmitFinished)] == [2]


def test_a_resumed_answer_is_not_ahead_of_its_goal_by_what_another_router_sent() -> None:
    core = CoreUnderTest()
    core.ask(spec_of(resumed=((11, 12, 13),), tpot_s=2.0))
    task = core.task_id()
    core.now = 5.0
    core.report(PREFILL, PrefillStarted(task), tokens(task, 3, 14))
    (sequence,) = core.core.state.request_by_id[RequestId("r")].sequences
    assert sequence.due.next_token_at_s == 5.0 + 2.0


def test_a_resumed_request_ends_like_any_other() -> None:
    core = CoreUnderTest()
    core.ask(spec_of(num_choices=2, resumed=((11, 12), None)))
    task = core.task_id()
    core.report(PREFILL, tokens(task, 2, 13, finish="stop"), TaskReleased(task))
    core.report("decode-0", TaskReleased(task))
    assert_empty(core)
    assert isinstance(core.core, RouterCore)
    assert core.core.state.counters.num_finished == 1


def test_a_resumed_request_that_is_running_is_not_begun_twice() -> None:
    core = CoreUnderTest()
    core.ask(spec_of(resumed=((11,),)))
    with pytest.raises(Exception, match="is running"):
        core.tell(RequestArrived(spec_of(resumed=((11,),))))


# --- streams ----------------------------------------------------------------------------------


def stream_of(num_choices: int = 1, starts: Starts = ()) -> RequestStream:
    return RequestStream(ID, b"f", num_choices, AcceptedInfo("m", 3, 5, "standard"), starts)


def token(number: int, index: int = 0, count: int = 1) -> EmitTokens:
    ids = tuple(range(number, number + count))
    return EmitTokens(ID, index, TokensEmitted(TaskId("r/0~1"), number, ids, "x" * count))


def finished(index: int = 0) -> EmitFinished:
    return EmitFinished(ID, index, "stop", None, 2, TIMINGS)


async def all_of(stream: RequestStream, starts: Starts) -> list[Emission]:
    got: list[Emission] = []
    reader = stream.take_over()
    async with asyncio.timeout(PATIENCE_S), aclosing(stream.follow(reader, starts)) as batches:
        async for batch in batches:
            got += batch
    return got


async def test_a_reader_gets_what_it_does_not_have() -> None:
    stream = stream_of(2)
    for emission in (token(0), token(0, 1), token(1), finished(1), token(2), finished()):
        stream.append(emission)
    assert await all_of(stream, (2, None)) == [token(2), finished()]
    assert await all_of(stream, (3, 1)) == [finished(1), finished()]


async def test_an_answer_is_sent_whole_where_the_readers_place_is_within_an_emission() -> None:
    """Text cannot be cut at a token; the reader skips what it has."""
    stream = stream_of()
    wanted: list[Emission] = [token(0, count=3), token(3), finished()]
    for emission in wanted:
        stream.append(emission)
    assert await all_of(stream, (2,)) == wanted


async def test_a_stream_is_over_when_the_answers_that_were_open_have_ended() -> None:
    stream = stream_of(2, (None, 4))
    assert not stream.is_over
    stream.append(finished(1))
    assert stream.is_over


def test_a_stream_serves_only_those_who_have_what_came_before_it() -> None:
    stream = stream_of(2, (None, 4))
    assert stream.can_serve((None, 4))
    assert stream.can_serve((None, 6))
    assert not stream.can_serve((None, 3))
    assert not stream.can_serve((2, 4))
    assert not stream.can_serve(())
    assert stream_of(2).can_serve(())
    assert stream_of(2).can_serve((None, 4))
