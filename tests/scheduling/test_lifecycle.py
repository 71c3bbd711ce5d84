"""The transition table holds together."""

import pytest

from scheduling.lifecycle import (
    NOBODY,
    TERMINAL,
    TRANSITIONS,
    Change,
    IllegalTransition,
    Phase,
    advance,
)


def test_every_phase_can_be_reached_and_left() -> None:
    reached = {row.target for row in TRANSITIONS} | {Phase.RECEIVED}
    left = {row.source for row in TRANSITIONS}
    assert reached == set(Phase)
    assert left == set(Phase) - TERMINAL


def test_no_row_is_there_twice() -> None:
    keys = [(row.source, row.change) for row in TRANSITIONS]
    assert len(keys) == len(set(keys))


def test_every_live_phase_ends_when_the_caller_leaves_or_work_is_given_up() -> None:
    for phase in set(Phase) - TERMINAL:
        assert advance(phase, Change.CALLER_LEFT) is Phase.CANCELLED
        assert advance(phase, Change.GAVE_UP) is Phase.FAILED


def test_nobody_owns_blocks_of_a_sequence_that_is_over_or_waits_for_prefill() -> None:
    for row in TRANSITIONS:
        is_free = row.target in TERMINAL or row.target is Phase.PROMPT_QUEUED
        assert (row.kv_owner == NOBODY) == is_free


def test_a_step_that_the_table_does_not_have_is_refused() -> None:
    with pytest.raises(IllegalTransition, match="no transition from finished by preempted"):
        advance(Phase.FINISHED, Change.PREEMPTED)
