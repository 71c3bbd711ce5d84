"""What pushes take is learnt from those that ended, whatever held up a few of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.ids import WorkerId
from scheduling.push_path import MAX_PEERS, WINDOW, MeasuredPush, PushPaths, fitted

PEER, OTHER = WorkerId("decode-0"), WorkerId("decode-1")
FIXED_S, PER_BLOCK_S = 1e-3, 1e-4


def pushed(num_blocks: int, held_up_s: float = 0.0) -> MeasuredPush:
    seconds = FIXED_S + num_blocks * PER_BLOCK_S + held_up_s
    return MeasuredPush(num_blocks, seconds)


@given(st.lists(st.integers(1, 4096), min_size=2, max_size=WINDOW).filter(lambda x: len({*x}) > 1))
def test_a_line_is_found_through_pushes_of_different_sizes(sizes: list[int]) -> None:
    path = fitted([pushed(size) for size in sizes], are_cores_shared=True)
    assert path.fixed_s == pytest.approx(FIXED_S, rel=1e-3)
    assert path.per_block_s == pytest.approx(PER_BLOCK_S, rel=1e-3)
    assert path.pass_share == 1.0


def test_a_few_that_were_held_up_change_little() -> None:
    pushes = [pushed(size) for size in (4, 8, 16, 32, 64, 128, 256, 512)]
    held_up = [pushed(12, held_up_s=1.0), pushed(200, held_up_s=0.5)]
    path = fitted([*pushes, *held_up], are_cores_shared=False)
    assert path.per_block_s == pytest.approx(PER_BLOCK_S, rel=0.2)
    assert path.fixed_s == pytest.approx(FIXED_S, rel=0.5)
    assert path.pass_share == 0.0


def test_of_pushes_of_one_size_the_fixed_cost_counts_as_none() -> None:
    path = fitted([pushed(16)] * 3, are_cores_shared=False)
    assert path.fixed_s == 0.0
    assert path.seconds(16) == pytest.approx(pushed(16).seconds)
    assert path.seconds(0) == 0.0


@given(
    st.lists(
        st.builds(MeasuredPush, st.integers(1, 99), st.floats(1e-6, 10)),
        min_size=1,
        max_size=WINDOW,
    )
)
def test_whatever_was_measured_nothing_is_negative(pushes: list[MeasuredPush]) -> None:
    path = fitted(pushes, are_cores_shared=True)
    assert min(path.fixed_s, path.per_block_s) >= 0


def test_a_path_is_unknown_until_a_push_has_ended_well() -> None:
    paths = PushPaths(are_cores_shared=False)
    paths.ordered(PEER, 8, 10.0)
    assert paths.path_to(PEER) is None
    paths.ended(PEER, None)
    assert paths.path_to(PEER) is None
    paths.ordered(PEER, 8, 10.0)
    paths.ended(PEER, pushed(8))
    assert paths.path_to(PEER) is not None
    assert paths.path_to(OTHER) is None


def test_a_path_is_busy_with_what_is_under_way_and_less_so_as_time_goes_by() -> None:
    paths = PushPaths(are_cores_shared=False)
    paths.ordered(PEER, 8, 10.0)
    paths.ended(PEER, pushed(8))
    assert paths.busy_s(PEER, 10.0) == 0.0
    seconds = pushed(8).seconds
    paths.ordered(PEER, 8, 10.0)
    paths.ordered(PEER, 8, 10.0)
    assert paths.busy_s(PEER, 10.0) == pytest.approx(2 * seconds)
    assert paths.busy_s(PEER, 10.0 + seconds / 2) == pytest.approx(1.5 * seconds)
    paths.ended(PEER, pushed(8))
    assert paths.busy_s(PEER, 10.0 + seconds) == pytest.approx(seconds)
    paths.ended(PEER, pushed(8))
    assert paths.busy_s(PEER, 10.0 + seconds) == 0.0
    assert paths.busy_s(OTHER, 10.0) == 0.0


def known(sizes: tuple[int, ...] = (8,)) -> PushPaths:
    paths = PushPaths(are_cores_shared=False)
    for size in sizes:
        paths.ordered(PEER, size, 0.0)
        paths.ended(PEER, pushed(size))
    return paths


def test_a_push_takes_none_of_the_time_before_its_order() -> None:
    paths = known()
    seconds = pushed(8).seconds
    assert paths.busy_s(PEER, 10.0) == 0.0
    # Somebody knew the time when this one was ordered,
    paths.ordered(PEER, 8, 10.0 + seconds)
    assert paths.busy_s(PEER, 10.0 + seconds) == pytest.approx(seconds)
    paths.ended(PEER, pushed(8))
    # and nobody when this one was, at the end of a pass: it counts from the next look on.
    paths.ordered(PEER, 8, None)
    assert paths.busy_s(PEER, 20.0) == pytest.approx(seconds)
    assert paths.busy_s(PEER, 20.0 + seconds / 2) == pytest.approx(seconds / 2)


def test_a_push_that_takes_longer_than_predicted_takes_no_time_from_those_behind_it() -> None:
    paths = known()
    seconds = pushed(8).seconds
    for _ in range(3):
        paths.ordered(PEER, 8, 10.0)
    assert paths.busy_s(PEER, 20.0) == pytest.approx(2 * seconds)
    paths.ended(PEER, None)
    assert paths.busy_s(PEER, 20.0) == pytest.approx(2 * seconds)


def test_a_push_that_ended_early_leaves_no_more_than_what_is_behind_it() -> None:
    paths = known((8, 16))
    paths.ordered(PEER, 100, 10.0)
    paths.ordered(PEER, 8, 10.0)
    assert paths.busy_s(PEER, 10.0) == pytest.approx(pushed(100).seconds + pushed(8).seconds)
    paths.ended(PEER, pushed(100))
    assert paths.busy_s(PEER, 10.0) == pytest.approx(pushed(8).seconds)


def test_peers_that_were_used_longest_ago_are_forgotten_but_none_with_a_push_under_way() -> None:
    paths = PushPaths(are_cores_shared=False)
    paths.ordered(PEER, 8, 10.0)
    for number in range(2 * MAX_PEERS):
        other = WorkerId(f"other-{number}")
        paths.ordered(other, 8, 10.0)
        paths.ended(other, pushed(8))
    assert len(paths) == MAX_PEERS
    assert paths.path_to(WorkerId("other-0")) is None
    paths.ended(PEER, pushed(8))
    assert paths.path_to(PEER) is not None
