import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from engine.counter_random import uniforms

FIXED = [0.6524484863740322, 0.7012121095215252, 0.36818951565166946, 0.7238582745899125]
UINT64 = st.integers(0, 2**64 - 1)


def numbers(seeds: list[int], indices: list[int]) -> list[float]:
    drawn: list[float] = uniforms(np.array(seeds, np.uint64), np.array(indices, np.uint64)).tolist()
    return drawn


@given(pairs=st.lists(st.tuples(UINT64, st.integers(0, 2**32)), min_size=1, max_size=20))
def test_a_number_depends_on_its_own_seed_and_index_only(pairs: list[tuple[int, int]]) -> None:
    seeds, indices = ([pair[i] for pair in pairs] for i in (0, 1))
    together = numbers(seeds, indices)
    assert together == [numbers([seed], [index])[0] for seed, index in pairs]
    assert all(0.0 <= number < 1.0 for number in together)


def test_the_stream_is_fixed_for_ever() -> None:
    # Stored outputs and replays depend on these values.
    assert numbers([0, 0, 1, 2**64 - 1], [0, 1, 0, 7]) == FIXED


def test_numbers_of_a_seed_and_of_neighbouring_seeds_fill_the_interval_evenly() -> None:
    count = 20_000
    for seeds, indices in (
        (np.full(count, 42), np.arange(count)),
        (np.arange(count), np.zeros(count)),
    ):
        drawn = uniforms(seeds.astype(np.uint64), indices.astype(np.uint64))
        histogram, _ = np.histogram(drawn, bins=20, range=(0, 1))
        chi_square = ((histogram - count / 20) ** 2 / (count / 20)).sum()
        # 19 degrees of freedom: above 43.8 in one of a thousand streams.
        assert chi_square < 43.8
        correlation = np.corrcoef(drawn[:-1], drawn[1:])[0, 1]
        assert abs(correlation) < 0.03
