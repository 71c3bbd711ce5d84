"""Plans: every pair moved once, in order, in as few copies as order allows."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtransfer.plan import CopyRun, batch_runs, merge_runs, pushable_blocks, sampled_indices

# Short jumps make runs likely.
block_ids = st.lists(st.integers(0, 12), max_size=40)
SAMPLED = (24, 79, 113, 134, 168, 223, 257, 278)
pairs = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40)


def expand(runs: list[CopyRun] | tuple[CopyRun, ...]) -> list[tuple[int, int]]:
    return [(src + i, dst + i) for src, dst, length in runs for i in range(length)]


def split(moved: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [src for src, _ in moved], [dst for _, dst in moved]


@st.composite
def runny_pairs(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Pairs made of runs, which independent draws hardly ever give."""
    starts = draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 6))))
    return [(src + i, dst + i) for src, dst, length in starts for i in range(length)]


@given(pairs | runny_pairs())
def test_every_pair_moves_exactly_once_in_order(moved: list[tuple[int, int]]) -> None:
    assert expand(merge_runs(*split(moved))) == moved


@given(pairs | runny_pairs())
def test_no_two_neighbouring_runs_could_be_one(moved: list[tuple[int, int]]) -> None:
    runs = merge_runs(*split(moved))
    for first, second in itertools.pairwise(runs):
        end = (first.src_block + first.num_blocks, first.dst_block + first.num_blocks)
        assert end != (second.src_block, second.dst_block)
    assert all(run.num_blocks > 0 for run in runs)


@given(runny_pairs(), st.integers(1, 64), st.integers(1, 400))
def test_batches_keep_every_pair_and_fill_their_limit(
    moved: list[tuple[int, int]], block_bytes: int, max_batch_bytes: int
) -> None:
    batches = list(batch_runs(merge_runs(*split(moved)), block_bytes, max_batch_bytes))
    assert [pair for batch in batches for pair in expand(batch)] == moved
    max_blocks = max(1, max_batch_bytes // block_bytes)
    sizes = [sum(run.num_blocks for run in batch) for batch in batches]
    assert all(size == max_blocks for size in sizes[:-1])
    assert all(1 <= size <= max_blocks for size in sizes[-1:])


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="2 source and 1 target"):
        merge_runs([1, 2], [1])


@given(st.integers(1, 200), st.integers(1, 32), st.lists(st.integers(1, 50), max_size=20))
def test_chunks_together_push_each_block_of_the_prompt_once(
    num_prompt_tokens: int, block_size: int, chunks: list[int]
) -> None:
    num_computed = 0
    pushed: list[int] = []
    for chunk in [*chunks, num_prompt_tokens]:
        num_computed = min(num_prompt_tokens, num_computed + chunk)
        ready = pushable_blocks(num_computed, num_prompt_tokens, block_size, len(pushed))
        pushed += list(ready)
        # No block is pushed before its last token, or the prompt's, is computed.
        for index in ready:
            assert min((index + 1) * block_size, num_prompt_tokens) <= num_computed
    assert pushed == list(range(-(-num_prompt_tokens // block_size)))


def test_the_partial_last_block_waits_for_the_end_of_the_prompt() -> None:
    assert pushable_blocks(31, 33, 16, 0) == range(1)
    assert pushable_blocks(32, 33, 16, 1) == range(1, 2)
    assert pushable_blocks(33, 33, 16, 2) == range(2, 3)


@given(st.text(), st.integers(0, 1000), st.integers(0, 300), st.floats(0, 1))
def test_a_sample_does_not_depend_on_how_a_transfer_is_cut(
    transfer_id: str, first: int, num_blocks: int, fraction: float
) -> None:
    whole = sampled_indices(transfer_id, first, num_blocks, fraction)
    cut = num_blocks // 3
    parts = sampled_indices(transfer_id, first, cut, fraction)
    parts += sampled_indices(transfer_id, first + cut, num_blocks - cut, fraction)
    assert whole == parts


@given(st.text(), st.integers(0, 10_000), st.floats(0, 1))
def test_every_window_carries_nearly_its_share_of_checksums(
    transfer_id: str, first: int, fraction: float
) -> None:
    num_samples = len(sampled_indices(transfer_id, first, 256, fraction))
    assert abs(num_samples - 256 * fraction) <= 6


def test_the_sample_of_a_transfer_never_changes() -> None:
    # What the definition in whole numbers without a bound gives.
    assert sampled_indices("request-7/0", 3, 300, 0.03) == SAMPLED


def test_fractions_of_none_and_all_are_exact() -> None:
    assert sampled_indices("a", 5, 4, 0.0) == ()
    assert sampled_indices("a", 5, 4, 1.0) == (5, 6, 7, 8)


def test_different_transfers_sample_different_blocks() -> None:
    samples = {sampled_indices(f"request-{i}/0", 0, 64, 0.25) for i in range(20)}
    assert len(samples) > 10


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_fraction_outside_its_range_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        sampled_indices("a", 0, 1, fraction)
