"""The pick that leaves least of tokens and blocks: PAPERS 3.4.4."""

import random

from hypothesis import given
from hypothesis import strategies as st

from scheduling.two_resource_fit import Resources, closest_fit

CAPACITY = Resources(num_tokens=768, num_blocks=400)
resources = st.builds(Resources, st.integers(0, 800), st.integers(0, 420))


# PAPERS 3.4.4
@given(left=resources, demands=st.lists(resources, max_size=12))
def test_the_pick_is_that_of_brute_force(left: Resources, demands: list[Resources]) -> None:
    best: tuple[int, int] | None = None
    for index, demand in enumerate(demands):
        tokens = left.num_tokens - demand.num_tokens
        blocks = left.num_blocks - demand.num_blocks
        if tokens < 0 or blocks < 0:
            continue
        # In whole numbers: both sides times the capacities.
        size = (tokens * CAPACITY.num_blocks) ** 2 + (blocks * CAPACITY.num_tokens) ** 2
        if best is None or size < best[0]:
            best = (size, index)
    pick = closest_fit(left, demands, CAPACITY)
    if best is None:
        assert pick is None
        return
    assert pick is not None
    chosen = left.less(demands[pick])
    size = (chosen.num_tokens * CAPACITY.num_blocks) ** 2
    assert size + (chosen.num_blocks * CAPACITY.num_tokens) ** 2 == best[0]


def stranded(left: Resources) -> float:
    return left.num_tokens / CAPACITY.num_tokens + left.num_blocks / CAPACITY.num_blocks


def filled_by_fit(demands: list[Resources]) -> Resources:
    left, waiting = CAPACITY, list(demands)
    while (pick := closest_fit(left, waiting, CAPACITY)) is not None:
        left = left.less(waiting.pop(pick))
    return left


def filled_in_order(demands: list[Resources]) -> Resources:
    left = CAPACITY
    for demand in demands:
        if not demand.fits_in(left):
            break
        left = left.less(demand)
    return left


# PAPERS 3.4.4
def test_less_is_stranded_than_first_come_first_served() -> None:
    table = [Resources(400, 120), Resources(300, 350), Resources(460, 40)]
    assert filled_in_order(table) == Resources(368, 280)
    assert filled_by_fit(table) == Resources(8, 10)
    random_source = random.Random(4)
    by_fit = in_order = 0.0
    for _ in range(200):
        demands = [
            Resources(random_source.randint(1, 400), random_source.randint(1, 200))
            for _ in range(12)
        ]
        by_fit += stranded(filled_by_fit(demands))
        in_order += stranded(filled_in_order(demands))
    assert by_fit < 0.5 * in_order


def test_a_resource_without_capacity_does_not_count() -> None:
    demands = [Resources(10, 0), Resources(50, 0), Resources(30, 0)]
    assert closest_fit(Resources(40, 0), demands, Resources(100, 0)) == 2
    assert closest_fit(Resources(5, 0), demands, Resources(100, 0)) is None


def test_equal_fits_go_by_order() -> None:
    demands = [Resources(10, 10), Resources(20, 20), Resources(20, 20)]
    assert closest_fit(CAPACITY, demands, CAPACITY) == 1
