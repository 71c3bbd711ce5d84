"""When the latest tokens of an answer came."""

import pytest

from simulator.step_log import MAX_UNTOLD_TOKENS, StepLog


def test_gaps_are_from_token_to_token_and_pauses_count() -> None:
    log = StepLog()
    log.add(end_s=1.0, lasted_s=1.0, each_s=(1.0,), num_steps=1)
    # Half a second without any token, then three steps.
    log.add(end_s=3.0, lasted_s=1.5, each_s=(0.4, 0.5, 0.6), num_steps=3)
    assert list(log.gaps_s(3)) == pytest.approx([0.5, 0.6])
    assert list(log.gaps_s(4)) == pytest.approx([0.9, 0.5, 0.6])
    assert list(log.gaps_s(1)) == []


def test_it_knows_how_many_steps_had_ended_a_moment_ago() -> None:
    log = StepLog()
    log.add(end_s=1.0, lasted_s=0.5, each_s=(0.2, 0.3), num_steps=2)
    assert [log.num_steps_by(at_s) for at_s in (1.5, 1.0, 0.8, 0.7, 0.69)] == [2, 2, 1, 1, 0]


def test_only_the_latest_steps_are_kept() -> None:
    log = StepLog()
    for number in range(5 * MAX_UNTOLD_TOKENS):
        log.add(end_s=float(number + 1), lasted_s=1.0, each_s=(1.0,), num_steps=1)
    assert log.num_steps == 5 * MAX_UNTOLD_TOKENS
    assert len(log.gaps_s(MAX_UNTOLD_TOKENS)) == MAX_UNTOLD_TOKENS - 1
    assert len(log._gaps_s) <= 2 * MAX_UNTOLD_TOKENS
