"""When to try again, without a clock and without waiting."""

import random
from contextlib import suppress

import pytest

from tandemserve.errors import (
    ConnectionFailed,
    DeadlineExceeded,
    InvalidRequest,
    KvCorrupted,
    LimitExceeded,
    NoWorkerAvailable,
    QueueFull,
    TandemError,
    WorkerFailed,
)
from tandemserve.retry import Attempts, RetryPolicy


def attempts(timeout_s: float | None = None, **policy: float | None) -> Attempts:
    chosen = RetryPolicy(**{"max_retries": 8, "retry_for_s": 60.0} | policy)  # type: ignore[arg-type]
    return Attempts(chosen, random.Random(3), timeout_s=timeout_s, now=100.0)


def test_delays_double_up_to_the_cap_with_jitter() -> None:
    trial = attempts(first_delay_s=1.0, max_delay_s=4.0)
    delays = [trial.delay_after(ConnectionFailed("x"), 100.0) for _ in range(5)]
    for delay, ceiling in zip(delays, [1.0, 2.0, 4.0, 4.0, 4.0], strict=True):
        assert ceiling / 2 <= delay <= ceiling
    assert len(set(delays)) == 5


@pytest.mark.parametrize("error_class", [ConnectionFailed, QueueFull, NoWorkerAvailable])
def test_passing_failures_are_tried_again(error_class: type[TandemError]) -> None:
    assert attempts().delay_after(error_class("x"), 100.0) > 0


@pytest.mark.parametrize("error_class", [InvalidRequest, LimitExceeded, WorkerFailed, KvCorrupted])
def test_other_failures_are_raised_at_once(error_class: type[TandemError]) -> None:
    error = error_class("x")
    with pytest.raises(error_class) as caught:
        attempts().delay_after(error, 100.0)
    assert caught.value is error


def test_any_failure_with_a_retry_delay_is_tried_again() -> None:
    error = WorkerFailed("x", retry_after_s=2.0)
    assert error.retryable
    assert 2.0 < attempts().delay_after(error, 100.0) <= 2.2


def test_a_very_long_retry_delay_is_the_callers_decision() -> None:
    with pytest.raises(QueueFull):
        attempts().delay_after(QueueFull("x", retry_after_s=31.0), 100.0)


@pytest.mark.parametrize("asked_s", [9.0, 20.0, 600.0])
def test_who_says_that_workers_may_be_long_in_coming_is_asked_while_patience_lasts(
    asked_s: float,
) -> None:
    # One may be there sooner than it was the last time, and to ask costs nobody any work.
    trial, now = attempts(max_retries=None, retry_for_s=10.0), 100.0
    tried_at_s: list[float] = []
    error = NoWorkerAvailable("x", retry_after_s=asked_s)
    with suppress(NoWorkerAvailable):
        while True:
            now += trial.delay_after(error, now)
            tried_at_s.append(now - 100.0)
    assert 7.0 < tried_at_s[-1] <= 10.0
    # A wait that there is time for is waited; of a longer one, only the end is not known.
    assert tried_at_s[0] > 9.0 if asked_s < 10.0 else len(tried_at_s) >= 6


def test_a_long_wait_for_workers_does_not_end_the_tries_before_a_deadline() -> None:
    trial = attempts(timeout_s=5.0, max_retries=None, retry_for_s=10.0)
    assert trial.delay_after(NoWorkerAvailable("x", retry_after_s=8.0), 100.0) <= 0.2


def test_attempts_share_one_deadline() -> None:
    trial = attempts(timeout_s=10.0)
    assert trial.remaining_s(100.0) == 10.0
    assert trial.remaining_s(107.0) == 3.0
    with pytest.raises(DeadlineExceeded, match=r"within 10\.0 s; raise timeout_s") as caught:
        trial.remaining_s(110.0, "r1")
    assert caught.value.request_id == "r1"


def test_a_wait_past_the_deadline_is_not_begun() -> None:
    trial = attempts(timeout_s=10.0)
    with pytest.raises(ConnectionFailed):
        trial.delay_after(ConnectionFailed("x"), 109.95)


def test_no_timeout_means_no_deadline() -> None:
    assert attempts().remaining_s(1e9) is None


def test_a_router_that_is_gone_is_waited_for_as_long_as_the_policy_says() -> None:
    trial, now, num_tries = attempts(max_retries=None, retry_for_s=10.0), 100.0, 0
    try:
        while True:
            now += (
                trial.delay_after(ConnectionFailed("x"), now) + 0.1
            )  # the attempt takes time, too
            num_tries += 1
    except ConnectionFailed:
        assert 7.0 < now - 100.0 <= 10.2
    assert num_tries >= 6


def test_patience_begins_anew_with_every_token() -> None:
    trial, now = attempts(max_retries=None, retry_for_s=10.0), 100.0
    for _ in range(50):
        now += trial.delay_after(ConnectionFailed("x"), now)
        trial.progressed()
    assert now > 103.0


def test_an_answer_that_has_begun_is_waited_for_longer_where_the_policy_says_so() -> None:
    trial = attempts(max_retries=None, retry_for_s=2.0, resume_for_s=15.0)
    trial.delay_after(ConnectionFailed("x"), 100.0)
    with pytest.raises(ConnectionFailed):
        trial.delay_after(ConnectionFailed("x"), 103.0)
    trial.progressed()
    trial.delay_after(ConnectionFailed("x"), 200.0)
    trial.delay_after(ConnectionFailed("x"), 212.0)
    with pytest.raises(ConnectionFailed):
        trial.delay_after(ConnectionFailed("x"), 215.0)


@pytest.mark.parametrize("error_class", [QueueFull, WorkerFailed, KvCorrupted])
def test_what_costs_the_cluster_work_is_tried_again_twice(
    error_class: type[TandemError],
) -> None:
    trial = attempts(max_retries=None, retry_for_s=10.0)
    for _ in range(2):
        trial.delay_after(error_class("x", retry_after_s=0.1), 100.0)
    with pytest.raises(error_class):
        trial.delay_after(error_class("x", retry_after_s=0.1), 100.0)


def test_every_other_router_is_asked_before_the_waiting_begins() -> None:
    policy = RetryPolicy(first_delay_s=0.2)
    trial = Attempts(policy, random.Random(3), timeout_s=None, now=0.0, num_others=2)
    delays = [trial.delay_after(NoWorkerAvailable("x", retry_after_s=1.0), 0.0) for _ in range(3)]
    assert max(delays[:2]) <= 0.05
    assert delays[2] > 1.0


def test_progress_resets_the_count() -> None:
    trial = attempts(max_retries=1)
    trial.delay_after(ConnectionFailed("x"), 100.0)
    trial.progressed()
    trial.delay_after(ConnectionFailed("x"), 100.0)
    with pytest.raises(ConnectionFailed):
        trial.delay_after(ConnectionFailed("x"), 100.0)


def test_a_router_that_said_why_it_goes_away_is_not_called_unreachable() -> None:
    said = NoWorkerAvailable("this router is shutting down", retry_after_s=1.0)
    trial = attempts(max_retries=2)
    trial.delay_after(said, 100.0)
    trial.delay_after(ConnectionFailed("refused"), 101.0)
    with pytest.raises(NoWorkerAvailable) as caught:
        trial.delay_after(ConnectionFailed("refused"), 102.0)
    assert caught.value is said
    # What another one said before the last word arrived explains nothing.
    trial.progressed()
    for now in (103.0, 104.0):
        trial.delay_after(ConnectionFailed("refused"), now)
    with pytest.raises(ConnectionFailed):
        trial.delay_after(ConnectionFailed("refused"), 105.0)
