"""The promise: a sequence's logits have the same bits in any batch, chunking and recomputation.

Compared are the logprobs of the whole vocabulary at every output token, as exact floats.
"""

from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import pytest
import torch

from engine.attention.choice import AttentionName, AttentionShape, choose_attention
from engine.kv_dtype import dtype_name
from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.testing import (
    FAMILIES,
    TrialRequest,
    TrialResult,
    family_fields,
    make_random_model_folder,
    run_together,
)
from scheduling.sampling import SamplingParams

VOCAB = 320
ALL_LOGPROBS = SamplingParams(temperature=0.0, num_logprobs=VOCAB)
DRAWN = SamplingParams(temperature=0.8, top_p=0.95, seed=11, num_logprobs=VOCAB)
# Awkward on purpose: 3 query heads per KV head, widths that no vector length divides.
FIELDS = family_fields(
    "qwen2",
    vocab_size=VOCAB,
    hidden_size=120,
    intermediate_size=172,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
)
# As real models are: on the matrix unit all layers are one call.
WHOLE = FIELDS | {"hidden_size": 96, "intermediate_size": 160}
NUM_BLOCKS = 400

Alone = Callable[[TrialRequest], TrialResult]


@pytest.fixture(
    scope="module",
    params=[
        *product(["float32", "bfloat16"], ["auto", "torch"], ["awkward"]),
        ("bfloat16", "auto", "whole"),
        ("float16", "auto", "awkward"),
    ],
    ids="-".join,
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("model")
    dtype, kernels, widths = request.param
    make_random_model_folder(folder, seed=3, fields=WHOLE if widths == "whole" else FIELDS)
    return load_model(folder, dtype, kernels=kernels)


def run(
    model: Decoder,
    requests: Sequence[TrialRequest],
    block_size: int = 16,
    attention: AttentionName = "auto",
    kv_dtype: str = "auto",
) -> list[TrialResult]:
    dtype = dtype_name(model.dtype) if kv_dtype == "auto" else kv_dtype
    config = model.config
    layout = KvLayout(config.num_layers, config.num_kv_heads, config.head_dim, block_size, dtype)
    shape = AttentionShape(
        layout, config.num_heads, config.layer_attention, model.device, model.dtype
    )
    backend = choose_attention(shape, attention)
    runner = ModelRunner(model, KvPool(layout, NUM_BLOCKS), 40, backend)
    return run_together(runner, requests, block_size, NUM_BLOCKS)


@pytest.fixture(scope="module")
def alone(model: Decoder) -> Alone:
    """What a request gives by itself; computed once."""
    known: list[tuple[TrialRequest, TrialResult]] = []

    def compute(request: TrialRequest) -> TrialResult:
        for each, result in known:
            if each == request:
                return result
        known.append((request, run(model, [request])[0]))
        return known[-1][1]

    return compute


def prompt(length: int, salt: int = 0) -> tuple[int, ...]:
    return tuple(3 + (i * i + 7 * i + salt) % (VOCAB - 3) for i in range(length))


@pytest.mark.parametrize("sampling", [ALL_LOGPROBS, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("num_others", [1, 6, 31])
def test_a_sequence_is_the_same_alone_and_in_a_batch(
    model: Decoder, alone: Alone, num_others: int, sampling: SamplingParams
) -> None:
    mine = TrialRequest(prompt(60), 12, sampling)
    others = [
        TrialRequest(prompt(1 + 9 * i % 130, salt=i), 4 + i % 13, chunk_tokens=5 + 11 * i)
        for i in range(num_others)
    ]
    middle = num_others // 2
    together = run(model, [*others[:middle], mine, *others[middle:]])[middle]
    assert together == alone(mine)


def test_the_torch_attention_keeps_the_promise_too(model: Decoder) -> None:
    mine = TrialRequest(prompt(60), 12, ALL_LOGPROBS)
    pieces = TrialRequest(prompt(60), 12, ALL_LOGPROBS, chunk_tokens=13)
    others = [TrialRequest(prompt(1 + 25 * i, salt=i), 5, chunk_tokens=8 + i) for i in range(6)]
    alone = run(model, [mine], attention="torch")[0]
    assert run(model, [*others, pieces], attention="torch")[-1] == alone


@pytest.mark.parametrize("num_threads", [2])
def test_the_number_of_threads_changes_no_bit_where_the_arithmetic_has_one_name(
    model: Decoder, alone: Alone, num_threads: int
) -> None:
    request = TrialRequest(prompt(160), 3, ALL_LOGPROBS)
    expected = alone(request)
    torch.set_num_threads(num_threads)
    try:
        if Decoder(model.config, model.weights).arithmetic != model.arithmetic:
            pytest.skip("this machine sums in another order with more threads")
        assert run(model, [request]) == [expected]
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 7, 16, 63, 64, 65, 150])
def test_a_prompt_is_the_same_in_any_chunks(
    model: Decoder, alone: Alone, chunk_tokens: int
) -> None:
    whole = TrialRequest(prompt(160), 3, ALL_LOGPROBS)
    pieces = TrialRequest(prompt(160), 3, ALL_LOGPROBS, chunk_tokens=chunk_tokens)
    assert run(model, [pieces]) == [alone(whole)]


@pytest.mark.parametrize("sampling", [ALL_LOGPROBS, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("num_known", [1, 5, 29])
def test_output_computed_again_as_prompt_continues_the_same(
    model: Decoder, alone: Alone, num_known: int, sampling: SamplingParams
) -> None:
    full = alone(TrialRequest(prompt(50), 30, sampling))
    known = tuple(full.token_ids[:num_known])
    again = TrialRequest(prompt(50), 30 - num_known, sampling, chunk_tokens=40, known_output=known)
    rest = run(model, [again, TrialRequest(prompt(90, salt=5), 9)])[0]
    assert rest.token_ids == full.token_ids[num_known:]
    assert rest.logprobs == full.logprobs[num_known:]


@pytest.mark.parametrize("kv_dtype", ["fp8_e4m3", "float16", "float32", "bfloat16"])
def test_kv_in_another_dtype_keeps_the_promise_too(model: Decoder, kv_dtype: str) -> None:
    alone = run(model, [TrialRequest(prompt(60), 12, ALL_LOGPROBS)], kv_dtype=kv_dtype)[0]
    others = [TrialRequest(prompt(1 + 25 * i, salt=i), 5, chunk_tokens=8 + i) for i in range(6)]
    pieces = TrialRequest(prompt(60), 12, ALL_LOGPROBS, chunk_tokens=13)
    known = tuple(alone.token_ids[:5])
    again = TrialRequest(prompt(60), 7, ALL_LOGPROBS, chunk_tokens=31, known_output=known)
    results = run(model, [*others[:3], pieces, *others[3:], again], kv_dtype=kv_dtype)
    assert results[3] == alone
    assert results[-1].token_ids == alone.token_ids[5:]
    assert results[-1].logprobs == alone.logprobs[5:]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_the_promise(family: str, dtype: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    make_random_model_folder(tmp_path, family, seed=9)
    model = load_model(tmp_path, dtype)
    alone = run(model, [TrialRequest(prompt(60), 12, ALL_LOGPROBS)])[0]
    known = tuple(alone.token_ids[:5])
    others = [
        TrialRequest(prompt(1 + 17 * i, salt=i), 3 + 2 * i, chunk_tokens=4 + 9 * i)
        for i in range(6)
    ]
    mine = TrialRequest(prompt(60), 12, ALL_LOGPROBS, chunk_tokens=13)
    again = TrialRequest(prompt(60), 7, ALL_LOGPROBS, chunk_tokens=31, known_output=known)
    results = run(model, [*others[:3], mine, *others[3:], again])
    assert results[3] == alone
    assert results[-1].token_ids == alone.token_ids[5:]
    assert results[-1].logprobs == alone.logprobs[5:]
