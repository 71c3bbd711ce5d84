"""Recorded layers compute the bits of layers that are not recorded."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.attention.choice import AttentionShape, choose_attention
from engine.cuda_capture import CudaCapture
from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_runner import ModelRunner
from engine.models.capture_testing import FakeCapture
from engine.models.captured_layers import bucket_sizes
from engine.models.decoder import Decoder
from engine.tensor_parallel import Reduce
from engine.tensor_parallel_testing import RankThreads, thread_exchanges
from engine.testing import (
    FAMILIES,
    TrialRequest,
    TrialResult,
    make_random_model_folder,
    run_together,
)
from scheduling.sampling import SamplingParams

BLOCK_SIZE = 8
NUM_BLOCKS = 64
LOGPROBS = SamplingParams(temperature=0.0, num_logprobs=3, num_prompt_logprobs=1)
REQUESTS = [
    TrialRequest(tuple(range(5, 45)), 9, LOGPROBS, chunk_tokens=7),
    TrialRequest((9, 8, 7), 14, LOGPROBS),
    TrialRequest(tuple(range(100, 130)), 4, SamplingParams(seed=3, num_logprobs=3)),
]
MAX_ROWS = 12


def run(model: Decoder) -> list[TrialResult]:
    shape = model.config
    dtype = "bfloat16" if model.dtype == torch.bfloat16 else "float32"
    layout = KvLayout(shape.num_layers, shape.num_kv_heads, shape.head_dim, BLOCK_SIZE, dtype)
    attention = choose_attention(
        AttentionShape(layout, shape.num_heads, shape.layer_attention, model.device), "torch"
    )
    runner = ModelRunner(model, KvPool(layout, NUM_BLOCKS, model.device), 4, attention)
    return run_together(runner, REQUESTS, BLOCK_SIZE, NUM_BLOCKS)


@pytest.mark.parametrize("family", [name for name in FAMILIES if "mix" not in name])
def test_recorded_layers_give_the_same_bits(tmp_path: Path, family: str) -> None:
    make_random_model_folder(tmp_path, family)
    model = load_model(tmp_path, kernels="torch")
    expected = run(model)
    capture = FakeCapture()
    model.capture(MAX_ROWS, capture)
    is_mixture = model.config.mixture is not None
    sizes = bucket_sizes(MAX_ROWS, model.row_tiles.sizes)
    assert capture.num_recorded == (0 if is_mixture else len(sizes) * (model.config.num_layers + 1))
    # Passes of the first chunks are larger than what is recorded.
    assert run(model) == expected
    assert run(model) == expected


def test_a_mixture_of_experts_is_not_recorded(tmp_path: Path) -> None:
    make_random_model_folder(tmp_path, "mixtral")
    model = load_model(tmp_path, kernels="torch")
    capture = FakeCapture()
    model.capture(MAX_ROWS, capture)
    assert capture.num_recorded == 0


@pytest.mark.parametrize(("family", "reduce"), [("qwen2", "gather"), ("gemma2", "sum")])
def test_ranks_record_what_lies_between_their_exchanges(
    tmp_path: Path, family: str, reduce: Reduce
) -> None:
    torch.set_num_threads(1)
    make_random_model_folder(tmp_path, family)
    ranks = RankThreads(tmp_path, 2, "float32", BLOCK_SIZE, NUM_BLOCKS, "torch", reduce, "torch")
    try:
        expected = run_together(ranks, REQUESTS, BLOCK_SIZE, NUM_BLOCKS)
        captures = [FakeCapture() for _ in ranks.ranks]
        ranks.on_all(lambda runner, rank: decoder_of(runner).capture(MAX_ROWS, captures[rank]))
        model = decoder_of(ranks.ranks[0])
        num_layers, num_sizes = (
            model.config.num_layers,
            len(bucket_sizes(MAX_ROWS, model.row_tiles.sizes)),
        )
        # Twice a layer where parts are added up, four times where rows are gathered.
        per_layer = 2 if reduce == "sum" else 4
        for capture in captures:
            assert capture.num_recorded == num_sizes * (num_layers + 1)
            assert capture.num_left_out == num_sizes * num_layers * per_layer
        assert run_together(ranks, REQUESTS, BLOCK_SIZE, NUM_BLOCKS) == expected
        assert run_together(ranks, REQUESTS, BLOCK_SIZE, NUM_BLOCKS) == expected
    finally:
        ranks.close()


def decoder_of(runner: ModelRunner) -> Decoder:
    assert isinstance(runner.model, Decoder)
    return runner.model


@given(
    max_rows=st.integers(1, 2048),
    allowed=st.sets(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256])),
)
def test_every_number_of_rows_has_a_size_that_wastes_less_than_half(
    max_rows: int, allowed: set[int]
) -> None:
    sizes = bucket_sizes(max_rows, sorted(allowed))
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] >= max_rows
    for rows in range(1, max_rows + 1):
        size = next(size for size in sizes if size >= rows)
        # What the products need is no waste of ours.
        least = min((count for count in allowed if count >= rows), default=rows)
        assert size < 2 * least or size == sizes[0]
    assert len(sizes) <= 5 + 8 + max_rows // 64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_graphs_of_a_gpu_give_the_bits_of_single_kernels(tmp_path: Path, dtype: str) -> None:
    make_random_model_folder(tmp_path)
    model = load_model(tmp_path, dtype, "cuda")
    expected = run(model)
    model.capture(MAX_ROWS, CudaCapture(model.device))
    assert run(model) == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("reduce", ["gather", "sum"])
def test_graphs_of_a_gpu_end_and_begin_where_ranks_exchange(tmp_path: Path, reduce: Reduce) -> None:
    make_random_model_folder(tmp_path)
    # Two ranks of NCCL need two devices: this one exchanges with itself.
    (end,) = thread_exchanges(1, reduce)
    model = load_model(tmp_path, "bfloat16", "cuda", exchange=end)
    expected = run(model)
    model.capture(MAX_ROWS, CudaCapture(model.device))
    assert run(model) == expected
