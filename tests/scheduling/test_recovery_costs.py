"""Of the two ways back the cheaper is taken, by what copies and passes took."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.batch_time import BatchShape, BatchTime
from scheduling.batch_time_recovery import Recovery
from scheduling.recovery_costs import AheadOfIt, RecoveryCosts, Victim

MODEL = BatchTime(fixed_s=0.005, bends=((0, 5e-6), (256, 1e-4)), per_prompt_pair_s=2e-9)
BLOCK_SIZE, BLOCK_BYTES = 16, 2**21
NOTHING = AheadOfIt()


def costs_of(bytes_per_s: float, max_chunk_tokens: int = 2048) -> RecoveryCosts:
    return RecoveryCosts(MODEL, BLOCK_BYTES, bytes_per_s, max_chunk_tokens)


def victim_of(num_tokens: int) -> Victim:
    num_blocks = -(-num_tokens // BLOCK_SIZE)
    return Victim(num_tokens, num_blocks, num_blocks)


# PAPERS 2.4.5: the recovery is the argmin of the measured costs, on both sides of the crossover.
@given(
    num_tokens=st.integers(1, 20_000),
    s_per_block=st.floats(1e-5, 1e-1),
    num_parked=st.integers(0, 100),
    num_prompt_tokens=st.integers(0, 10_000),
    num_beside=st.integers(0, 64),
)
def test_the_way_that_costs_less_is_chosen_whatever_was_measured(
    num_tokens: int,
    s_per_block: float,
    num_parked: int,
    num_prompt_tokens: int,
    num_beside: int,
) -> None:
    costs, victim = costs_of(1e9), victim_of(num_tokens)
    for _ in range(30):
        costs.pace.observe(64, 64 * s_per_block, is_out=True)
        costs.pace.observe(64, 64 * s_per_block, is_out=False)
    beside = BatchShape(num_beside, 500 * num_beside)
    ahead = AheadOfIt(num_parked, num_prompt_tokens, beside)
    swapping, computing = costs.swap_s(victim, ahead), costs.recompute_s(victim, ahead)
    chosen = costs.choose(victim, ahead)
    assert {Recovery.SWAP: swapping, Recovery.RECOMPUTE: computing}[chosen] == min(
        swapping, computing
    )


def test_both_ways_are_chosen_on_one_machine() -> None:
    # About 4 GB/s each way: beside a batch, few tokens fit below the bend for nothing.
    ahead = AheadOfIt(beside=BatchShape(64, 64_000))
    chosen = {n: costs_of(4e9).choose(victim_of(n), ahead) for n in (100, 8000)}
    assert chosen == {100: Recovery.RECOMPUTE, 8000: Recovery.SWAP}


def test_a_copy_that_host_memory_has_already_is_paid_one_way() -> None:
    costs, victim = costs_of(1e9), victim_of(1600)
    again = Victim(victim.num_tokens, victim.num_blocks, num_blocks_out=0)
    assert costs.swap_s(again, NOTHING) == pytest.approx(costs.swap_s(victim, NOTHING) / 2)


def test_what_goes_first_on_a_way_makes_it_dearer() -> None:
    costs, victim = costs_of(1e9), victim_of(1000)
    parked, prompts = AheadOfIt(num_parked_blocks=50), AheadOfIt(num_prompt_tokens=5000)
    assert costs.swap_s(victim, parked) == pytest.approx(
        costs.swap_s(victim, NOTHING) + costs.pace.back_s(50)
    )
    assert costs.recompute_s(victim, prompts) > costs.recompute_s(victim, NOTHING)
    assert costs.swap_s(victim, prompts) == costs.swap_s(victim, NOTHING)
    assert costs.recompute_s(victim, parked) == costs.recompute_s(victim, NOTHING)


def test_beside_a_batch_only_what_its_tokens_add_is_paid() -> None:
    costs, victim = costs_of(1e9), victim_of(100)
    alone = costs.recompute_s(victim, NOTHING)
    beside = costs.recompute_s(victim, AheadOfIt(beside=BatchShape(8, 8000)))
    assert beside == pytest.approx(alone - MODEL.fixed_s)


def test_one_copy_that_was_held_up_does_not_end_swapping_for_ever() -> None:
    costs, victim = costs_of(1e11), victim_of(4000)
    assert costs.choose(victim, NOTHING) is Recovery.SWAP
    costs.pace.observe(victim.num_blocks, 100.0, is_out=True)
    chosen = [costs.choose(victim, NOTHING) for _ in range(500)]
    assert chosen[0] is Recovery.RECOMPUTE
    assert chosen[-1] is Recovery.SWAP


def test_chunks_without_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="max_chunk_tokens"):
        costs_of(1e9, max_chunk_tokens=0)
