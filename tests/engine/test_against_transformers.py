"""Greedy tokens equal those of transformers' generate on the same weights, in float32."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_config import LinearRopeScaling, Llama3RopeScaling, ModelConfig
from engine.model_runner import ModelRunner
from engine.testing import (
    TrialRequest,
    make_random_model_folder,
    random_model_config,
    run_together,
)

NUM_OUTPUT = 24
LLAMA3_SCALING = Llama3RopeScaling(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
CONFIGS: dict[str, ModelConfig] = {
    "llama": random_model_config("llama"),
    "llama-tied-llama3-rope": random_model_config(
        "llama", tie_word_embeddings=True, rope_scaling=LLAMA3_SCALING
    ),
    "llama-biases-linear-rope": random_model_config(
        "llama",
        attention_bias=True,
        mlp_bias=True,
        num_heads=4,
        num_kv_heads=4,
        rope_scaling=LinearRopeScaling(2.0),
    ),
    "llama-wide-heads": random_model_config("llama", head_dim=32, num_kv_heads=1),
    "qwen2": random_model_config("qwen2", num_heads=4, num_kv_heads=2),
    "qwen2-tied": random_model_config("qwen2", tie_word_embeddings=True, num_kv_heads=1),
}


@dataclass(frozen=True)
class Pair:
    """Our runner and transformers' model over the same folder."""

    folder: Path
    config: ModelConfig
    reference: Any

    def runner(self, num_blocks: int, block_size: int) -> ModelRunner:
        layout = KvLayout(
            self.config.num_layers,
            self.config.num_kv_heads,
            self.config.head_dim,
            block_size,
            "float32",
        )
        return ModelRunner(load_model(self.folder), KvPool(layout, num_blocks), max_num_seqs=32)

    def expected(self, prompt: tuple[int, ...]) -> list[int]:
        ids = torch.tensor([prompt])
        output = self.reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_OUTPUT,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        tokens: list[int] = output[0, len(prompt) :].tolist()
        return tokens


@pytest.fixture(scope="module", params=list(CONFIGS.items()), ids=list(CONFIGS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.set_num_threads(1)
    name, config = request.param
    folder = tmp_path_factory.mktemp(name)
    make_random_model_folder(folder, seed=7, config=config, num_shards=2)
    transformers.utils.logging.disable_progress_bar()
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    return Pair(folder, config, reference)


def prompts(count: int, longest: int) -> list[tuple[int, ...]]:
    rng = random.Random(5)
    lengths = [1, 2, 16, 17, 64, longest] + [rng.randint(1, longest) for _ in range(count)]
    return [tuple(rng.randrange(3, 320) for _ in range(length)) for length in lengths[:count]]


def test_a_mixed_batch_in_chunks_gives_the_tokens_of_generate(pair: Pair) -> None:
    requests = [
        TrialRequest(tokens, NUM_OUTPUT, chunk_tokens=30 + 10 * index)
        for index, tokens in enumerate(prompts(8, 150))
    ]
    results = run_together(pair.runner(200, 16), requests, 16, 200)
    for request, result in zip(requests, results, strict=True):
        assert result.token_ids == pair.expected(request.prompt)
    # A model that repeats itself would prove little.
    assert len({token for result in results for token in result.token_ids}) > 40


def test_other_block_sizes_change_nothing(pair: Pair) -> None:
    requests = [TrialRequest(tokens, NUM_OUTPUT) for tokens in prompts(3, 90)]
    for block_size in (4, 128):
        results = run_together(pair.runner(100, block_size), requests, block_size, 100)
        for request, result in zip(requests, results, strict=True):
            assert result.token_ids == pair.expected(request.prompt)
