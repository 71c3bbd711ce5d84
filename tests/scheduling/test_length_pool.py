"""The grid loses little, a quantile is what sorting would say, and nothing is scanned."""

import math
import random
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.length_pool import (
    LONGEST,
    NUM_BUCKETS,
    PRIOR_SAMPLES,
    LengthWindow,
    PooledLengths,
    bucket_of,
    last_of,
)

LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=200)


def pool_of(lengths: list[int], window: int = 1000) -> PooledLengths:
    pool = PooledLengths(window, pooling_samples=16, max_groups=8)
    for length in lengths:
        pool.add((), length)
    return pool


def test_every_bucket_begins_where_the_one_before_ends() -> None:
    ends = [last_of(bucket) for bucket in range(bucket_of(LONGEST) + 1)]
    assert ends[-1] == LONGEST
    for bucket, (before, end) in enumerate(zip([-1, *ends], ends, strict=False)):
        assert bucket_of(before + 1) == bucket_of(end) == bucket


@given(st.integers(1, LONGEST))
def test_the_grid_lengthens_by_a_thirty_second_at_most(length: int) -> None:
    assert length <= last_of(bucket_of(length)) <= length + length // 32


@given(LENGTHS, st.integers(1, 50), st.integers(0, NUM_BUCKETS - 1))
def test_a_window_counts_its_last_lengths(lengths: list[int], size: int, bucket: int) -> None:
    window = LengthWindow(size)
    for length in lengths:
        window.add(length)
    counted = [length for length in lengths[-size:] if bucket_of(length) <= bucket]
    assert window.up_to(bucket) == (len(counted), sum(counted))


@given(LENGTHS, st.floats(0.05, 0.95), st.integers(0, 5000))
def test_a_quantile_covers_its_share_of_the_longer_ones(
    lengths: list[int], share: float, more_than: int
) -> None:
    _, bound = pool_of(lengths).summary((), share, more_than, at_most=10**6)
    longer = [length for length in lengths if bucket_of(length) > bucket_of(more_than)]
    assert sum(length <= bound for length in longer) >= share * len(longer)


@given(LENGTHS, st.integers(1, 6000))
def test_the_mean_is_that_of_lengths_cut_at_the_limit(lengths: list[int], at_most: int) -> None:
    mean, _ = pool_of(lengths).summary((), 0.9, 0, at_most)
    # The unknown counts as evenly spread over the scales up to the limit; the limit's bucket as the
    # limit.
    cut = [at_most if bucket_of(each) >= bucket_of(at_most) else each for each in lengths]
    spread = (at_most - 1) / math.log(at_most) if at_most > 1 else 1.0
    unknown = PRIOR_SAMPLES * spread
    assert mean == pytest.approx((sum(cut) + unknown) / (len(cut) + PRIOR_SAMPLES))


def test_a_group_outweighs_the_others_as_its_own_lengths_grow_in_number() -> None:
    pool = PooledLengths(512, pooling_samples=16, max_groups=8)
    for _ in range(200):
        pool.add(("long",), 800)
    means = []
    for _ in range(200):
        pool.add(("short",), 20)
        means.append(pool.summary(("short",), 0.9, 0, 10_000)[0])
    assert means == sorted(means, reverse=True)
    assert means[-1] < 0.2 * means[0]


def test_the_group_that_was_not_fed_for_longest_is_forgotten() -> None:
    pool = PooledLengths(512, pooling_samples=1, max_groups=2)
    for key in ("a", "b", "a", "c"):
        for _ in range(100):
            pool.add((key,), {"a": 10, "b": 20, "c": 30}[key])
    assert pool.num_groups == 2
    assert [pool.summary((key,), 0.5, 0, 1000)[1] for key in "abc"] == [10, 20, 30]


def test_a_length_that_was_cut_is_taken_for_the_longer_ones_in_turn() -> None:
    pool = pool_of([10, 20, 30, 40] * 50)
    drawn = [pool.add_cut((), 25) for _ in range(100)]
    assert set(drawn) == {30, 40}
    assert 45 <= drawn.count(30) <= 55


def test_a_length_that_was_cut_beyond_all_others_stays_open() -> None:
    pool = pool_of([10] * 50)
    assert [pool.add_cut((), 100) for _ in range(50)] == [None] * 50
    assert pool.summary((), 0.9, 0, at_most=10**6)[1] == 10**6
    # Once it is seen how long such answers become, those that were cut before say nothing more.
    for _ in range(5):
        pool.add((), 300)
    assert all(drawn is not None for drawn in (pool.add_cut((), 100) for _ in range(50)))


def test_what_was_cut_later_says_that_some_are_longer_still() -> None:
    pool = pool_of([50] * 50 + [200] * 50)
    for _ in range(100):
        pool.add_cut((), 1000)
    drawn = [pool.add_cut((), 100) for _ in range(300)]
    assert 0.6 <= drawn.count(None) / 300 <= 0.73, "two of three answers beyond 100 are beyond 1000"


class Counted(array):  # type: ignore[type-arg]
    """A tree that counts how often it is read."""

    num_reads = 0

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        Counted.num_reads += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("num_lengths", [10, 1_000, 30_000])
def test_a_quantile_reads_one_path_of_the_tree(num_lengths: int) -> None:
    rng = random.Random(7)
    pool = pool_of([rng.randint(1, 4000) for _ in range(num_lengths)], window=30_000)
    (_, window), *_ = pool._parts(())[0]
    window.counts = Counted("q", window.counts)
    Counted.num_reads = 0
    pool.summary((), 0.9, 0, 4000)
    # Down the tree once, and twice up to the root for the mean.
    assert Counted.num_reads <= 3 * (NUM_BUCKETS.bit_length() - 1)


@pytest.mark.parametrize(
    ("window", "pooling", "groups", "what"),
    [(0, 1, 1, "window"), (1, 0, 1, "pooling_samples"), (1, 1, 0, "max_groups")],
)
def test_a_setting_that_means_nothing_is_refused(
    window: int, pooling: float, groups: int, what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        PooledLengths(window, pooling, groups)
