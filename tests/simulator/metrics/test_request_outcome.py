"""A request's figures, and whether it met its goals."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.metrics.live_request import MAX_EXACT_GAPS
from simulator.metrics.log_histogram import MAX_RELATIVE_ERROR
from simulator.metrics.recorder import RunRecorder
from simulator.metrics.request_outcome import RequestOutcome, Status
from simulator.metrics.testing import one_request
from simulator.slo import NO_SLO, GapRule, RequestSlo


def outcome_of(
    token_times_s: tuple[float, ...],
    slo: RequestSlo = NO_SLO,
    status: Status = Status.FINISHED,
    at_s: float = 0.0,
) -> RequestOutcome:
    told: list[RequestOutcome] = []
    recorder = RunRecorder(on_outcome=told.append)
    one_request(recorder, 0, token_times_s, at_s=at_s, slo=slo, status=status)
    (outcome,) = told
    return outcome


def test_latencies_are_counted_from_the_arrival() -> None:
    outcome = outcome_of((12.0, 12.5, 14.5), at_s=10.0)
    assert outcome.ttft_s == 2.0
    assert outcome.jct_s == 4.5
    assert outcome.num_output_tokens == 3
    assert outcome.gaps is not None
    assert (outcome.gaps.count, outcome.gaps.mean, outcome.gaps.max) == (2, 1.25, 2.0)


def test_one_token_has_no_gaps_and_meets_every_goal_on_them() -> None:
    outcome = outcome_of((1.0,), RequestSlo(gaps=((GapRule.EACH, 1e-9),)))
    assert outcome.gaps is None
    assert outcome.meets_slo


def test_tokens_of_one_frame_have_no_time_between_them() -> None:
    told: list[RequestOutcome] = []
    recorder = RunRecorder(on_outcome=told.append)
    live = recorder.arrived(0, 0.0, 10)
    live.emit(1.0, 3)
    live.emit(2.0, 2)
    recorder.ended(live, 2.0)
    gaps = told[0].gaps
    assert gaps is not None
    assert (gaps.count, gaps.max, gaps.mean) == (4, 1.0, 0.25)


# Gaps 0.1, 0.1, ... and one of 1 s.
_UNEVEN = (0.0, *(round(0.1 * number, 1) for number in range(1, 10)), 1.9)


@pytest.mark.parametrize(
    ("rule", "goal_s", "is_met"),
    [
        (GapRule.MEAN, 0.19, True),
        (GapRule.MEAN, 0.189, False),
        (GapRule.EACH, 1.0, True),
        (GapRule.EACH, 0.99, False),
        # Linear between the ninth and the tenth of ten gaps, at 8.91: 0.1 + 0.91 * 0.9.
        (GapRule.P99, 0.92, True),
        (GapRule.P99, 0.91, False),
        (GapRule.LONGEST_TENTH, 1.0, True),
        (GapRule.LONGEST_TENTH, 0.99, False),
    ],
)
def test_each_rule_looks_at_its_own_figure_of_the_gaps(
    rule: GapRule, goal_s: float, is_met: bool
) -> None:
    outcome = outcome_of(_UNEVEN, RequestSlo(gaps=((rule, goal_s),)))
    assert outcome.meets_gaps is is_met
    assert outcome.meets_slo is is_met


def test_what_equals_its_goal_meets_it_in_spite_of_rounding() -> None:
    slo = RequestSlo(ttft_s=0.3, jct_s=0.3 + 0.1, gaps=((GapRule.EACH, 0.1),))
    assert outcome_of((0.1 + 0.2, 0.1 + 0.2 + 0.1), slo).meets_slo


@pytest.mark.parametrize(
    "slo",
    [RequestSlo(ttft_s=0.9), RequestSlo(jct_s=1.9), RequestSlo(gaps=((GapRule.MEAN, 0.9),))],
)
def test_one_missed_goal_is_enough(slo: RequestSlo) -> None:
    assert not outcome_of((1.0, 2.0), slo).meets_slo


def test_every_goal_on_the_gaps_is_to_be_met() -> None:
    both = ((GapRule.MEAN, 0.2), (GapRule.EACH, 0.5))
    assert not outcome_of(_UNEVEN, RequestSlo(gaps=both)).meets_gaps


@pytest.mark.parametrize("status", [Status.FAILED, Status.CANCELLED])
def test_what_did_not_finish_met_nothing_but_its_first_token(status: Status) -> None:
    outcome = outcome_of((1.0, 2.0), status=status)
    assert outcome.meets_ttft
    assert not outcome.meets_gaps
    assert not outcome.meets_jct
    assert not outcome.meets_slo


def test_a_request_without_a_token_has_no_first_one() -> None:
    outcome = outcome_of((), status=Status.FAILED)
    assert outcome.ttft_s is None
    assert not outcome.meets_ttft


@settings(max_examples=5)
@given(short=st.floats(0.001, 0.1), long=st.floats(0.2, 10))
def test_a_very_long_answer_is_counted_within_the_stated_error(short: float, long: float) -> None:
    # One gap in fifty is long: the 99th percentile is one of them.
    gaps = [long if number % 50 == 0 else short for number in range(MAX_EXACT_GAPS // 50 * 51)]
    now, times = 0.0, [0.0]
    for gap in gaps:
        now += gap
        times.append(now)
    figures = outcome_of(tuple(times)).gaps
    assert figures is not None
    assert figures.count == len(gaps)
    assert figures.mean == pytest.approx(math.fsum(gaps) / len(gaps), rel=1e-4)
    assert figures.max == pytest.approx(long, rel=1e-4)
    assert figures.p99 == pytest.approx(long, rel=MAX_RELATIVE_ERROR + 1e-4)
    tenth = (len(gaps) + 9) // 10
    num_long = gaps.count(long)
    expected = (num_long * long + (tenth - num_long) * short) / tenth
    assert figures.longest_tenth_mean == pytest.approx(expected, rel=MAX_RELATIVE_ERROR + 1e-4)
