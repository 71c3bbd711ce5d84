"""All layers in one call give the very bits of the layers one by one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.attention.backend import AttentionBackend, AttentionBatch, StepAttention
from engine.attention.choice import AttentionShape, choose_attention
from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.native.library import find_compiler, load_kernels
from engine.testing import (
    FAMILIES,
    TrialRequest,
    TrialResult,
    family_fields,
    make_random_model_folder,
    run_together,
)
from scheduling.sampling import SamplingParams

DENSE = sorted(set(FAMILIES) - {"mixtral", "qwen3_moe"})
ALL_LOGPROBS = SamplingParams(temperature=0.0, num_logprobs=320)
BLOCK_SIZE, NUM_BLOCKS = 16, 200
# One token to many, chunks that end inside blocks, more tokens at once than fit one tile of rows.
REQUESTS = [
    TrialRequest(tuple(range(3, 3 + length)), 12, ALL_LOGPROBS, chunk_tokens=size)
    for length, size in ((1, 1), (7, 3), (40, 40), (90, 33), (150, 150))
]

Load = Callable[..., Decoder]


class OneByOne:
    """Compiled attention that does not say so: the decoder asks for each layer."""

    def __init__(self, inner: AttentionBackend) -> None:
        self._inner = inner
        self.arithmetic = inner.arithmetic

    def begin(self, batch: AttentionBatch, kv_pool: KvPool) -> StepAttention:
        return _Step(self._inner.begin(batch, kv_pool))


class _Step:
    def __init__(self, inner: StepAttention) -> None:
        self._inner = inner

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self._inner.attend(layer, query, key, value)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    compiler = find_compiler()
    if compiler is None or not load_kernels(compiler).can_multiply:
        pytest.skip("no compiler or no matrix unit")

    def of_fields(fields: dict[str, object], dtype: str = "bfloat16") -> Decoder:
        folder: Path = tmp_path_factory.mktemp("model")
        make_random_model_folder(folder, seed=5, fields=fields)
        return load_model(folder, dtype)

    return of_fields


def run(model: Decoder, *, one_by_one: bool) -> list[TrialResult]:
    config = model.config
    layout = KvLayout(
        config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, "bfloat16"
    )
    shape = AttentionShape(layout, config.num_heads, config.layer_attention, model.device)
    attention = choose_attention(shape, "auto")
    runner = ModelRunner(
        model, KvPool(layout, NUM_BLOCKS), 8, OneByOne(attention) if one_by_one else attention
    )
    return run_together(runner, REQUESTS, BLOCK_SIZE, NUM_BLOCKS)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("family", DENSE)
def test_the_bits_of_every_family_are_those_of_the_layers_one_by_one(
    load: Load, family: str, num_threads: int
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        model = load(family_fields(family))
        assert model.runs_layers_at_once
        assert run(model, one_by_one=False) == run(model, one_by_one=True)
    finally:
        torch.set_num_threads(before)


def test_biases_of_every_product_are_added(load: Load) -> None:
    fields = family_fields("llama", attention_bias=True, mlp_bias=True)
    model = load(fields)
    assert model.runs_layers_at_once
    biases = [linear.bias for linear in model.weights.layer_linears]
    assert all(bias is not None and bool(bias.any()) for bias in biases)
    assert run(model, one_by_one=False) == run(model, one_by_one=True)


@pytest.mark.parametrize(
    ("fields", "dtype"),
    [
        (family_fields("mixtral"), "bfloat16"),
        (family_fields("llama", intermediate_size=100), "bfloat16"),
        (family_fields("llama"), "float32"),
    ],
    ids=["experts", "narrow-step", "float32"],
)
def test_what_the_kernel_does_not_know_is_computed_layer_by_layer(
    load: Load, fields: dict[str, object], dtype: str
) -> None:
    assert not load(fields, dtype).runs_layers_at_once
