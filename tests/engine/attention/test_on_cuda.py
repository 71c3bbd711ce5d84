"""Attention on a CUDA device: FlashInfer and the torch backend against the reference.

Run with: pytest -m gpu tests/engine/attention. The first run compiles kernels (minutes).
"""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from engine.attention.backend import AttentionBackend
from engine.attention.batch_over import batch_over
from engine.attention.choice import AttentionName, AttentionShape, choose_attention
from engine.attention.flashinfer import FlashInferAttention, InstalledKernels
from engine.attention.testing import reference_attention, scattered_batch
from engine.kv_dtype import dtype_name
from engine.kv_pool import KvLayout, KvPool
from engine.model_config import LayerAttention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
NUM_BLOCKS = 256
LAYOUT = KvLayout(2, 4, 64, 16, "bfloat16")
NUM_HEADS = 12
LAYERS = {
    "full": LayerAttention(0.125),
    "window": LayerAttention(0.125, sliding_window=100),
    "softcap": LayerAttention(0.125, softcap=30.0),
}
NAMES: tuple[AttentionName, ...] = ("flashinfer", "torch")


def make(
    name: AttentionName,
    layer: LayerAttention,
    layout: KvLayout = LAYOUT,
    dtype: torch.dtype = torch.bfloat16,
) -> AttentionBackend:
    if name == "flashinfer" and find_spec("flashinfer") is None:
        pytest.skip("the package flashinfer is absent")
    layers, device = (layer,) * layout.num_layers, torch.device("cuda")
    shape = AttentionShape(layout, NUM_HEADS, layers, device, dtype)
    return choose_attention(shape, name)


def rows(num_tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(num_tokens, NUM_HEADS, LAYOUT.head_dim, generator=generator)
    key, value = torch.randn(
        2, num_tokens, LAYOUT.num_kv_heads, LAYOUT.head_dim, generator=generator
    )
    return query.bfloat16().float(), key, value


def on_cuda(
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    query, key, value = tensors
    return query.cuda(), key.cuda(), value.cuda()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kv_dtype", ["auto", "fp8_e4m3"])
def test_a_mixed_batch_matches_the_reference(
    name: AttentionName, layer: LayerAttention, dtype: torch.dtype, kv_dtype: str
) -> None:
    layout = replace(LAYOUT, dtype=dtype_name(dtype) if kv_dtype == "auto" else kv_dtype)
    batch = scattered_batch([300, 7, 0, 530], [1, 1, 70, 33], 16, NUM_BLOCKS, seed=1)
    pools = (KvPool(layout, NUM_BLOCKS, "cuda"), KvPool(layout, NUM_BLOCKS))
    history = torch.randn(pools[1].tensor.shape, generator=torch.Generator().manual_seed(2))
    for pool in pools:
        pool.tensor.copy_(history)
    step = make(name, layer, layout, dtype).begin(batch, pools[0])
    for index in range(LAYOUT.num_layers):
        new = rows(int(batch.num_queries.sum()), seed=index)
        actual = step.attend(index, *on_cuda(new)).cpu()
        expected = reference_attention(batch, pools[1], (index, layer), new)
        torch.testing.assert_close(actual, expected, rtol=2e-2, atol=2e-2)
    moved = pools[0].tensor.view(torch.uint8).cpu()
    assert torch.equal(moved, pools[1].tensor.view(torch.uint8))


@pytest.mark.parametrize("num_others", [1, 31])
@pytest.mark.parametrize("name", NAMES)
def test_a_decoded_token_has_the_same_bits_in_any_batch(
    name: AttentionName, num_others: int
) -> None:
    attention = make(name, LAYERS["full"])
    blocks = torch.arange(NUM_BLOCKS).view(32, 8).numpy()
    new = rows(num_others + 1, seed=4)
    results = []
    for count in (1, num_others + 1):
        pool = KvPool(LAYOUT, NUM_BLOCKS, "cuda")
        pool.tensor.copy_(
            torch.randn(pool.tensor.shape, generator=torch.Generator().manual_seed(5))
        )
        pieces = [(120 - 3 * index, 1) for index in range(count)]
        batch = batch_over(blocks[:count], pieces, 16)
        query, key, value = on_cuda(new)
        step = attention.begin(batch, pool)
        results.append(step.attend(0, query[:count], key[:count], value[:count])[0])
    assert torch.equal(results[0], results[1])


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "fp8_e4m3"])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS.keys())
def test_a_shared_beginning_gives_what_reading_it_for_each_gives(
    layer: LayerAttention, kv_dtype: str
) -> None:
    if find_spec("flashinfer") is None:
        pytest.skip("the package flashinfer is absent")
    layout = replace(LAYOUT, dtype=kv_dtype)
    # 33 members with 1,024 common tokens; among them one that shares nothing, and a prompt chunk.
    common = torch.arange(64).expand(35, 64).clone()
    common[5] = torch.arange(64, 128)
    own = 128 + torch.arange(35 * 2).view(35, 2)
    tables = torch.cat((common, own), dim=1).numpy()
    batch = batch_over(tables, [(1024 + i % 30, 1) for i in range(34)] + [(1024, 20)], 16)
    history = torch.randn(KvPool(layout, NUM_BLOCKS).tensor.shape)
    new = on_cuda(rows(54, seed=6))
    outs = []
    for min_shared_bytes in (None, 0):
        pool = KvPool(layout, NUM_BLOCKS, "cuda")
        pool.tensor.copy_(history)
        kernels = InstalledKernels(torch.device("cuda"))
        layers = (layer,) * layout.num_layers
        attention = FlashInferAttention(
            layout, NUM_HEADS, layers, kernels, torch.bfloat16, min_shared_bytes
        )
        outs.append(attention.begin(batch, pool).attend(0, *new))
    torch.testing.assert_close(outs[1], outs[0], rtol=2e-2, atol=2e-2)
    # Who shares nothing has no other bit, and neither has a layer with a window.
    alone = [5, *range(34, 54)] if layer.sliding_window is None else range(54)
    assert torch.equal(outs[1][list(alone)], outs[0][list(alone)])
