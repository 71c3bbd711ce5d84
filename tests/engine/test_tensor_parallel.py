"""A model cut among ranks gives the tokens and logprobs of the whole one.

To the last bit where every rank's products have the arithmetic of the whole model's, which the
worker finds out when it starts; else within bounds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.linear import Linear
from engine.loading import load_model
from engine.parallel_fit import TensorParallelUnfit, require_fit
from engine.row_tiles import ProductShape, columns_agree, row_count_groups
from engine.runner import LogitsNotFinite
from engine.tensor_parallel import Share
from engine.tensor_parallel_testing import RankThreads, rank_runner, thread_exchanges
from engine.testing import (
    FAMILIES,
    GREEDY,
    TrialRequest,
    TrialResult,
    family_config,
    family_fields,
    make_random_model_folder,
    run_together,
)
from scheduling.sampling import SamplingParams
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan

VOCAB, BLOCK_SIZE, NUM_BLOCKS = 320, 16, 100
ALL_LOGPROBS = SamplingParams(temperature=0.0, num_logprobs=VOCAB)
DRAWN = SamplingParams(temperature=0.8, top_p=0.95, seed=11, num_logprobs=5)
# Logprobs, where products of shares are summed in another order.
BOUNDS = {"float32": 1e-4, "bfloat16": 0.15}


def prompt(length: int, salt: int = 0) -> tuple[int, ...]:
    return tuple(3 + (i * i + 7 * i + salt) % (VOCAB - 3) for i in range(length))


REQUESTS = [
    TrialRequest(prompt(40), 6, ALL_LOGPROBS, chunk_tokens=17),
    TrialRequest(prompt(5, salt=2), 7, DRAWN),
    TrialRequest(prompt(23, salt=9), 4, ALL_LOGPROBS),
]


@contextmanager
def cut(folder: Path, size: int, dtype: str) -> Iterator[RankThreads]:
    ranks = RankThreads(folder, size, dtype, BLOCK_SIZE, NUM_BLOCKS)
    try:
        yield ranks
    finally:
        ranks.close()


def assert_alike(folder: Path, size: int, dtype: str) -> None:
    """The same bits, or the same first logprobs within the bounds."""
    torch.set_num_threads(1)
    whole = rank_runner(load_model(folder, dtype), BLOCK_SIZE, NUM_BLOCKS)
    expected = run_together(whole, REQUESTS, BLOCK_SIZE, NUM_BLOCKS)
    with cut(folder, size, dtype) as ranks:
        results = run_together(ranks, REQUESTS, BLOCK_SIZE, NUM_BLOCKS)
        if ranks.arithmetic == whole.arithmetic:
            assert results == expected
    for result, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(
            first_logprobs(result), first_logprobs(wanted), atol=BOUNDS[dtype], rtol=0
        )


def first_logprobs(result: TrialResult) -> torch.Tensor:
    """Of the first output token, by token id."""
    logprobs = result.logprobs[0]
    assert logprobs is not None
    return torch.tensor([value for _, value in sorted(logprobs.top)])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_ranks_compute_every_family_as_one_does(
    family: str, dtype: str, tmp_path: Path
) -> None:
    make_random_model_folder(tmp_path, family, seed=9)
    assert_alike(tmp_path, 2, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["qwen2", "gemma2", "mixtral", "phi3"])
def test_four_ranks_compute_as_one_does(family: str, dtype: str, tmp_path: Path) -> None:
    # A KV head for each rank, and for each query head.
    fields = family_fields(family, num_key_value_heads=4)
    make_random_model_folder(tmp_path, seed=9, fields=fields)
    assert_alike(tmp_path, 4, dtype)


def test_the_last_rank_may_have_fewer_rows_of_the_vocabulary(tmp_path: Path) -> None:
    fields = family_fields("llama", vocab_size=VOCAB + 1, tie_word_embeddings=True)
    make_random_model_folder(tmp_path, fields=fields)
    assert_alike(tmp_path, 2, "float32")
    assert [Share(rank, 4).range_of(5) for rank in range(4)] == [(0, 2), (2, 4), (4, 5), (5, 5)]


def test_prompt_logprobs_are_those_of_the_whole_model(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    make_random_model_folder(tmp_path, seed=5)
    wanted = SamplingParams(temperature=0.0, num_prompt_logprobs=3)
    requests = [TrialRequest(prompt(50), 2, wanted, chunk_tokens=20), TrialRequest(prompt(9), 3)]
    whole = rank_runner(load_model(tmp_path), BLOCK_SIZE, NUM_BLOCKS)
    with cut(tmp_path, 2, "float32") as ranks:
        assert run_together(ranks, requests, BLOCK_SIZE, NUM_BLOCKS) == run_together(
            whole, requests, BLOCK_SIZE, NUM_BLOCKS
        )


def test_after_logits_that_are_not_finite_the_ranks_go_on_together(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    make_random_model_folder(tmp_path, seed=5)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    # Whoever reads this token has no finite logits.
    tensors["model.embed_tokens.weight"][7] = float("nan")
    save_file(tensors, file)
    scored = SamplingParams(temperature=0.0, num_prompt_logprobs=0)
    with cut(tmp_path, 2, "float32") as ranks:
        # Of a prompt so long that its logits are computed in several pieces.
        long = (9, 7, *[8] * 298)
        ranks.add(SequenceStart(0, long, len(long), scored, tuple(range(2, 21))))
        ranks.add(SequenceStart(1, (9, 8, 9), 3, GREEDY, (1,)))
        bad, good = ScheduledChunk(0, 0, len(long), True), ScheduledChunk(1, 0, 3, True)
        with pytest.raises(LogitsNotFinite) as caught:
            ranks.step(StepPlan((bad, good)))
        assert caught.value.slots == (0,)
        ranks.remove(0)
        token_ids = ranks.step(StepPlan((good,))).token_ids
        ranks.step(StepPlan((ScheduledChunk(1, 3, 1, True),)))
    whole = rank_runner(load_model(tmp_path), BLOCK_SIZE, NUM_BLOCKS)
    whole.add(SequenceStart(1, (9, 8, 9), 3, GREEDY, (1,)))
    assert whole.step(StepPlan((good,))).token_ids == token_ids


def test_a_rank_holds_its_share_of_the_weights_only(tmp_path: Path) -> None:
    make_random_model_folder(tmp_path, "phi3", seed=5)
    whole = load_model(tmp_path)
    ends = thread_exchanges(2)
    first, second = (load_model(tmp_path, exchange=end) for end in ends)
    for model in (first, second):
        assert model.config.num_heads == whole.config.num_heads // 2
        assert model.config.num_kv_heads == whole.config.num_kv_heads // 2
    for layer, one, two in zip(
        whole.weights.layers, first.weights.layers, second.weights.layers, strict=True
    ):
        out = torch.cat((one.attention_out.dense(), two.attention_out.dense()))
        assert torch.equal(out, layer.attention_out.dense())
        head_dim = whole.config.head_dim
        # Queries of two heads, then one key and one value, each from its own part of the file.
        queries, keys = 4 * head_dim, 2 * head_dim
        parts = torch.tensor_split(layer.qkv.dense(), (queries, queries + keys))
        for rank, share in enumerate((one, two)):
            mine = torch.cat([part.chunk(2)[rank] for part in parts])
            assert torch.equal(share.qkv.dense(), mine)


def test_a_size_that_does_not_fit_is_refused_with_those_that_do() -> None:
    config = family_config("llama", num_key_value_heads=4)
    with pytest.raises(TensorParallelUnfit, match=r"it has 4 KV heads .*use one of 1, 2, 4$"):
        require_fit(config, 3)
    with pytest.raises(TensorParallelUnfit, match="40 intermediate_size of the experts") as caught:
        require_fit(family_config("qwen3_moe", num_key_value_heads=4, num_attention_heads=4), 16)
    assert caught.value.possible == (1, 2, 4)
    for size in caught.value.possible:
        require_fit(config, size)


SHAPES = st.builds(
    ProductShape,
    inner=st.sampled_from([48, 96, 500]),
    columns=st.integers(20, 300),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    device=st.just(torch.device("cpu")),
    packed=st.just(False),
)


@settings(max_examples=40, deadline=None)
@given(shape=SHAPES, share=st.integers(1, 299), first=st.integers(0, 280), seed=st.integers(0, 99))
def test_columns_that_agree_are_the_same_numbers_alone_and_in_the_whole_matrix(
    shape: ProductShape, share: int, first: int, seed: int
) -> None:
    torch.set_num_threads(1)
    share = min(share, shape.columns)
    first = min(first, shape.columns - share)
    linear = Linear(torch.zeros(2, 2, dtype=shape.dtype))
    assert linear.whole_product_shape == linear.product_shape
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(8, shape.inner, generator=generator).to(shape.dtype)
    matrix = torch.randn(shape.inner, shape.columns, generator=generator).to(shape.dtype)
    mine = matrix[:, first : first + share].contiguous()
    if columns_agree(shape, share, (4, 8)):
        assert torch.equal((rows @ matrix)[:, first : first + share], rows @ mine)


def test_row_counts_that_disagree_are_no_common_arithmetic() -> None:
    torch.set_num_threads(1)
    shape = ProductShape(1024, 300, torch.float32, torch.device("cpu"))
    groups = row_count_groups(shape, (1, 2, 256))
    if len(groups) == 1:
        pytest.skip("every row count gives the same bits on this machine")
    counts = [sizes[0] for sizes, _ in groups]
    assert not columns_agree(shape, 150, counts)
    assert columns_agree(shape, shape.columns, counts)
