"""Ranks that add up parts of sums: close to one process by a bound, and always the same bits.

A product in another order is the exact product of a matrix whose numbers are off by some relative
error (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Of k roundings in a row
that is no more than 3 sqrt(k) u, but for a probability below 2 exp(-9 / 2) in each (Higham and Mary
2019, theorem 2.4). So the bound for a model is 3 times what its logprobs move by when the matrices
that are cut are off by sqrt(k) u, up or down at random. It comes from the model itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.loading import load_model
from engine.model_config import ModelConfig
from engine.runner import Runner
from engine.tensor_parallel import Reduce, SummingLinear, summed
from engine.tensor_parallel_testing import RankThreads, rank_runner, thread_exchanges
from engine.testing import (
    FAMILIES,
    TrialRequest,
    TrialResult,
    family_fields,
    make_random_model_folder,
    run_together,
)
from scheduling.sampling import SamplingParams

VOCAB, BLOCK_SIZE, NUM_BLOCKS = 320, 16, 100
ALL_LOGPROBS = SamplingParams(temperature=0.0, num_logprobs=VOCAB)
# Unit roundoff, 2**-p for p binary digits.
ROUNDOFF = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
# The 3 of the bound.
DEVIATIONS = 3.0
# What the bound may be at most in float32: a larger one would say nothing.
USEFUL = 2e-3
# Of the error that one process makes in a shorter type, which is far from small in these models:
# their logprobs span some 20, and a token may visit another expert.
MAX_ERROR_RATIO = 2.0
SEED = 4


def prompt(length: int, salt: int = 0) -> tuple[int, ...]:
    return tuple(3 + (i * i + 7 * i + salt) % (VOCAB - 3) for i in range(length))


REQUESTS = [
    TrialRequest(prompt(40), 1, ALL_LOGPROBS, chunk_tokens=17),
    TrialRequest(prompt(5, salt=2), 1, ALL_LOGPROBS),
    TrialRequest(prompt(23, salt=9), 1, ALL_LOGPROBS),
]


@contextmanager
def cut(folder: Path, size: int, dtype: str, reduce: Reduce = "sum") -> Iterator[RankThreads]:
    ranks = RankThreads(folder, size, dtype, BLOCK_SIZE, NUM_BLOCKS, reduce=reduce)
    try:
        yield ranks
    finally:
        ranks.close()


def run(runner: Runner) -> list[TrialResult]:
    return run_together(runner, REQUESTS, BLOCK_SIZE, NUM_BLOCKS)


def logprobs_of(runner: Runner) -> torch.Tensor:
    """[requests, vocabulary] of the first output token, by token id."""
    rows = []
    for result in run(runner):
        logprobs = result.logprobs[0]
        assert logprobs is not None
        rows.append([value for _, value in sorted(logprobs.top)])
    return torch.tensor(rows)


def relative_error(config: ModelConfig, dtype: str) -> float:
    """sqrt(k) u of one process and of a sum of parts together.

    In float32 each addition of a sum rounds, in both orders. Shorter types are added up in float32:
    one process rounds the sum, ranks round their parts and then the sum of these.
    """
    inner = max(config.num_heads * config.head_dim, config.intermediate_size)
    num_roundings = 2 * inner if dtype == "float32" else 3
    return float(num_roundings**0.5 * ROUNDOFF[dtype])


def bound_for(folder: Path, dtype: str, expected: torch.Tensor, config: ModelConfig) -> float:
    """The most that a logprob may differ."""
    generator, error = torch.Generator().manual_seed(SEED), relative_error(config, dtype)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight", "w2.weight")):
            sign = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
            tensors[name] = tensor.float() * (1 + error * sign)
    save_file(tensors, file)
    found = logprobs_of(rank_runner(load_model(folder, dtype), BLOCK_SIZE, NUM_BLOCKS))
    return DEVIATIONS * (found - expected).abs().max().item()


def assert_close(folder: Path, size: int, dtype: str) -> None:
    """Within the bound of one process, and about as far from the exact numbers as that."""
    torch.set_num_threads(1)
    model = load_model(folder, dtype)
    expected = logprobs_of(rank_runner(model, BLOCK_SIZE, NUM_BLOCKS))
    exact = logprobs_of(rank_runner(load_model(folder), BLOCK_SIZE, NUM_BLOCKS))
    with cut(folder, size, dtype) as ranks:
        found = logprobs_of(ranks)
    difference = (found - expected).abs().max().item()
    bound = bound_for(folder, dtype, expected, model.config)
    print(f"seed {SEED}: differs by {difference:.3g}, bound {bound:.3g}")
    assert difference <= bound
    if dtype == "float32":
        assert bound <= USEFUL
    else:
        errors = [(rows - exact).square().mean().sqrt().item() for rows in (found, expected)]
        print(f"errors {errors[0]:.3g} of ranks, {errors[1]:.3g} of one process")
        assert errors[0] <= MAX_ERROR_RATIO * errors[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_sums_of_two_ranks_are_within_the_bound_of_one_process(
    family: str, dtype: str, tmp_path: Path
) -> None:
    make_random_model_folder(tmp_path, family, seed=9)
    assert_close(tmp_path, 2, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen2", "mixtral"])
def test_sums_of_four_ranks_are_within_the_bound_of_one_process(
    family: str, dtype: str, tmp_path: Path
) -> None:
    fields = family_fields(family, num_key_value_heads=4)
    make_random_model_folder(tmp_path, seed=9, fields=fields)
    assert_close(tmp_path, 4, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_workers_of_one_degree_give_equal_bits_and_others_are_told_apart(
    dtype: str, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    fields = family_fields("qwen2", num_key_value_heads=4)
    make_random_model_folder(tmp_path, seed=9, fields=fields)
    with cut(tmp_path, 2, dtype) as ranks, cut(tmp_path, 2, dtype) as others:
        assert run(ranks) == run(others)
        assert ranks.arithmetic == others.arithmetic
        of_two = ranks.arithmetic
    with cut(tmp_path, 4, dtype) as ranks:
        of_four = ranks.arithmetic
    with cut(tmp_path, 2, dtype, "gather") as ranks:
        gathered = ranks.arithmetic
    whole = rank_runner(load_model(tmp_path, dtype), BLOCK_SIZE, NUM_BLOCKS).arithmetic
    assert len({of_two, of_four, gathered}) == 3
    assert whole not in (of_two, of_four)


def test_a_token_has_the_same_bits_alone_and_in_a_batch(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    make_random_model_folder(tmp_path, "qwen2", seed=9)
    with cut(tmp_path, 2, "bfloat16") as ranks:
        together = run(ranks)
        alone = [run_together(ranks, [each], BLOCK_SIZE, NUM_BLOCKS)[0] for each in REQUESTS]
    assert alone == together


def test_parts_are_added_in_float32_from_rank_0_on_and_rounded_once() -> None:
    parts = torch.tensor([[1.0], [2.0**-8], [2.0**-8]]).to(torch.bfloat16)
    # Added in bfloat16, each of the small ones would be lost.
    assert summed(parts).tolist() == [1.0 + 2.0**-7]
    large = torch.tensor([[2.0**30], [1.0], [-(2.0**30)]])
    assert summed(large).item() == 0.0
    assert summed(large[[0, 2, 1]]).item() == 1.0


def test_a_rank_holds_its_columns_of_the_matrices_that_are_added_up(tmp_path: Path) -> None:
    make_random_model_folder(tmp_path, "phi3", seed=5)
    whole = load_model(tmp_path).weights.layers
    first, second = (
        load_model(tmp_path, exchange=end).weights.layers for end in thread_exchanges(2, "sum")
    )
    for layer, one, two in zip(whole, first, second, strict=True):
        assert isinstance(one.attention_out, SummingLinear)
        out = torch.cat((one.attention_out.dense(), two.attention_out.dense()), dim=1)
        assert torch.equal(out, layer.attention_out.dense())
        downs = [next(reversed([*each.mlp.linears])).dense() for each in (one, two, layer)]
        assert torch.equal(torch.cat(downs[:2], dim=1), downs[2])
