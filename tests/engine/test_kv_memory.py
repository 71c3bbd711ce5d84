"""Room for KV on a GPU: with a device that is fake and a pass that is real, and where there is one
with both real."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.attention.choice import AttentionShape, choose_attention
from engine.kv_memory import (
    CudaStatistics,
    DeviceUsage,
    PassLimits,
    TooLittleDeviceMemory,
    num_blocks_within,
    usage_of_largest_pass,
)
from engine.kv_memory_testing import FakeStatistics
from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.testing import make_random_model_folder

GIB = 1 << 30


@given(
    total=st.integers(1, 100 * GIB),
    others=st.integers(0, 10 * GIB),
    peak=st.integers(0, 80 * GIB),
    fraction=st.floats(0.01, 1.0),
    block_bytes=st.integers(1, 64 << 20),
)
def test_what_is_in_use_in_all_never_exceeds_the_share(
    total: int, others: int, peak: int, fraction: float, block_bytes: int
) -> None:
    usage = DeviceUsage(total, others, peak)
    limit = int(total * fraction)
    try:
        num_blocks = num_blocks_within(usage, fraction, block_bytes)
    except TooLittleDeviceMemory:
        assert others + peak + block_bytes > limit
        return
    used = others + peak + num_blocks * block_bytes
    assert used <= limit < used + block_bytes
    assert num_blocks >= 1


def test_no_room_is_an_error_that_names_the_share_that_would_do() -> None:
    usage = DeviceUsage(80 * GIB, GIB, 75 * GIB)
    with pytest.raises(TooLittleDeviceMemory, match=r"kv-memory-fraction above 0\.95"):
        num_blocks_within(usage, 0.9, 2 << 20)
    assert num_blocks_within(usage, 0.96, 2 << 20) > 0


@pytest.mark.parametrize(("max_tokens", "max_seqs"), [(64, 8), (8, 64), (600, 3), (1, 1)])
def test_the_largest_pass_is_computed_and_its_pool_is_not_counted(
    tmp_path: Path, max_tokens: int, max_seqs: int
) -> None:
    config = make_random_model_folder(tmp_path)
    model = load_model(tmp_path)
    layout = KvLayout(config.num_layers, config.num_kv_heads, config.head_dim, 16, "float32")
    shape = AttentionShape(layout, config.num_heads, config.layer_attention, torch.device("cpu"))
    statistics = FakeStatistics(DeviceUsage(8 * GIB, GIB, 2 * GIB))
    limits = PassLimits(max_tokens, max_seqs)
    usage = usage_of_largest_pass(model, choose_attention(shape), layout, limits, statistics)
    assert statistics.was_reset
    num_seqs = min(max_tokens, max_seqs)
    longest = config.max_position_embeddings
    lengths = [min(longest, max_tokens // num_seqs + more) for more in (0, 1)]
    least, most = (num_seqs * -(-length // 16) * layout.block_bytes for length in lengths)
    assert least <= 2 * GIB - usage.peak_bytes <= most


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_the_pool_and_the_largest_pass_stay_within_the_share(
    tmp_path: Path, dtype: str
) -> None:
    config = make_random_model_folder(tmp_path)
    model = load_model(tmp_path, dtype, "cuda")
    layout = KvLayout(config.num_layers, config.num_kv_heads, config.head_dim, 16, dtype)
    shape = AttentionShape(
        layout, config.num_heads, config.layer_attention, model.device, model.dtype
    )
    attention = choose_attention(shape, "torch")
    statistics, limits = CudaStatistics(model.device), PassLimits(512, 16)
    usage = usage_of_largest_pass(model, attention, layout, limits, statistics)
    assert 0 < usage.peak_bytes < usage.total_bytes
    assert 0 <= usage.others_bytes < usage.total_bytes
    fraction = (usage.others_bytes + usage.peak_bytes + (1 << 30)) / usage.total_bytes
    pool = KvPool(layout, num_blocks_within(usage, fraction, layout.block_bytes), model.device)
    assert pool.num_blocks * layout.block_bytes > 0.9 * GIB
    usage_of_largest_pass(model, attention, layout, limits, statistics)
    peak_bytes = torch.cuda.max_memory_reserved(model.device)
    # The measured pass has a small pool of its own beside this one; memory is taken in pieces.
    slack = 64 << 20
    assert usage.others_bytes + peak_bytes <= fraction * usage.total_bytes + slack
