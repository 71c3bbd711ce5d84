"""Swap or recompute: always the cheaper one, on both sides of the crossover."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.batch_time import BatchShape, BatchTime, SwapTimeModel, TransferTimeModel
from scheduling.batch_time_recovery import (
    Recovery,
    choose_recovery,
    crossover_tokens,
    recompute_seconds,
    swap_seconds,
)

MODEL = BatchTime(fixed_s=0.002, bends=((0, 5e-6), (256, 1e-4)), per_prompt_pair_s=2e-9)
# A slow start, then 8 GB/s each way: short sequences are computed sooner than copied.
LINK = TransferTimeModel(latency_s=0.004, bytes_per_s=8e9)
SWAP = SwapTimeModel(LINK, LINK)
KV_BYTES = 131_072
CHUNK = 2048


# PAPERS 2.4.5: the recovery is the argmin of measured costs on both sides of the crossover.
@given(st.integers(1, 20_000))
def test_the_cheaper_recovery_is_chosen_on_both_sides_of_the_crossover(num_tokens: int) -> None:
    crossover = crossover_tokens(MODEL, SWAP, KV_BYTES, CHUNK, max_tokens=20_000)
    assert crossover is not None
    assert 1 < crossover < 20_000
    swapping = swap_seconds(num_tokens, KV_BYTES, SWAP)
    computing = recompute_seconds(num_tokens, MODEL, CHUNK)
    chosen = choose_recovery(swapping, computing)
    assert {Recovery.SWAP: swapping, Recovery.RECOMPUTE: computing}[chosen] == min(
        swapping, computing
    )
    assert chosen is (Recovery.SWAP if num_tokens >= crossover else Recovery.RECOMPUTE)


def test_a_link_that_is_always_slower_has_no_crossover() -> None:
    slow = TransferTimeModel(latency_s=0.0, bytes_per_s=1e8)
    assert crossover_tokens(MODEL, SwapTimeModel(slow, slow), KV_BYTES, CHUNK, 20_000) is None


def test_a_link_that_is_always_faster_swaps_from_the_first_token() -> None:
    fast = TransferTimeModel(latency_s=0.0, bytes_per_s=1e12)
    assert crossover_tokens(MODEL, SwapTimeModel(fast, fast), KV_BYTES, CHUNK, 20_000) == 1


def test_what_hides_behind_computation_is_not_counted() -> None:
    whole = swap_seconds(1000, KV_BYTES, SWAP)
    assert swap_seconds(1000, KV_BYTES, SWAP, hidden_fraction=0.75) == pytest.approx(whole / 4)
    earlier = crossover_tokens(MODEL, SWAP, KV_BYTES, CHUNK, 20_000, hidden_fraction=0.75)
    assert earlier is not None
    assert earlier < (crossover_tokens(MODEL, SWAP, KV_BYTES, CHUNK, 20_000) or 0)


def test_recomputation_pays_the_fixed_cost_of_each_chunk() -> None:
    linear = BatchTime(fixed_s=0.01, bends=((0, 1e-5),))
    assert recompute_seconds(2000, linear, 512) == pytest.approx(4 * 0.01 + 2000 * 1e-5)
    assert recompute_seconds(0, linear, 512) == 0


def test_beside_a_running_batch_only_what_is_added_counts() -> None:
    running = BatchShape(64, 64_000)
    alone = recompute_seconds(100, MODEL, CHUNK)
    added = recompute_seconds(100, MODEL, CHUNK, beside=running)
    assert added == pytest.approx(
        MODEL.seconds(running.with_chunk(0, 100)) - MODEL.seconds(running)
    )
    assert added < alone - MODEL.fixed_s / 2


def test_equal_costs_are_computed_again() -> None:
    assert choose_recovery(1.0, 1.0) is Recovery.RECOMPUTE


def test_arguments_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_fraction"):
        swap_seconds(1, KV_BYTES, SWAP, hidden_fraction=1.5)
    with pytest.raises(ValueError, match="max_chunk_tokens"):
        recompute_seconds(1, MODEL, 0)
