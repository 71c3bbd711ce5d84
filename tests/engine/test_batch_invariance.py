"""The promise: a sequence's logits have the same bits in any batch, chunking and recomputation.

Compared are the logprobs of the whole vocabulary at every output token, as exact floats.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.testing import (
    TrialRequest,
    TrialResult,
    make_random_model_folder,
    random_model_config,
    run_together,
)
from scheduling.sampling import SamplingParams

VOCAB = 320
ALL_LOGPROBS = SamplingParams(temperature=0.0, num_logprobs=VOCAB)
DRAWN = SamplingParams(temperature=0.8, top_p=0.95, seed=11, num_logprobs=VOCAB)
# Awkward on purpose: 3 query heads per KV head, widths that no vector length divides.
CONFIG = random_model_config(
    "qwen2",
    vocab_size=VOCAB,
    hidden_size=120,
    intermediate_size=172,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    head_dim=20,
)
NUM_BLOCKS = 400


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("model")
    make_random_model_folder(folder, seed=3, config=CONFIG)
    return load_model(folder, request.param)


def run(
    model: Decoder, requests: Sequence[TrialRequest], block_size: int = 16
) -> list[TrialResult]:
    dtype = str(model.dtype).removeprefix("torch.")
    layout = KvLayout(CONFIG.num_layers, CONFIG.num_kv_heads, CONFIG.head_dim, block_size, dtype)
    runner = ModelRunner(model, KvPool(layout, NUM_BLOCKS), max_num_seqs=40)
    return run_together(runner, requests, block_size, NUM_BLOCKS)


def prompt(length: int, salt: int = 0) -> tuple[int, ...]:
    return tuple(3 + (i * i + 7 * i + salt) % (VOCAB - 3) for i in range(length))


@pytest.mark.parametrize("sampling", [ALL_LOGPROBS, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("num_others", [1, 6, 31])
def test_a_sequence_is_the_same_alone_and_in_a_batch(
    model: Decoder, num_others: int, sampling: SamplingParams
) -> None:
    mine = TrialRequest(prompt(60), 12, sampling)
    others = [
        TrialRequest(prompt(1 + 9 * i % 130, salt=i), 4 + i % 13, chunk_tokens=5 + 11 * i)
        for i in range(num_others)
    ]
    alone = run(model, [mine])[0]
    middle = num_others // 2
    together = run(model, [*others[:middle], mine, *others[middle:]])[middle]
    assert together == alone


@pytest.mark.parametrize("chunk_tokens", [1, 2, 7, 16, 63, 64, 65, 150])
def test_a_prompt_is_the_same_in_any_chunks(model: Decoder, chunk_tokens: int) -> None:
    whole = TrialRequest(prompt(160), 3, ALL_LOGPROBS)
    pieces = TrialRequest(prompt(160), 3, ALL_LOGPROBS, chunk_tokens=chunk_tokens)
    assert run(model, [pieces]) == run(model, [whole])


@pytest.mark.parametrize("sampling", [ALL_LOGPROBS, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize("num_known", [1, 5, 29])
def test_output_computed_again_as_prompt_continues_the_same(
    model: Decoder, num_known: int, sampling: SamplingParams
) -> None:
    full = run(model, [TrialRequest(prompt(50), 30, sampling)])[0]
    known = tuple(full.token_ids[:num_known])
    again = TrialRequest(prompt(50), 30 - num_known, sampling, chunk_tokens=40, known_output=known)
    rest = run(model, [again, TrialRequest(prompt(90, salt=5), 9)])[0]
    assert rest.token_ids == full.token_ids[num_known:]
    assert rest.logprobs == full.logprobs[num_known:]
