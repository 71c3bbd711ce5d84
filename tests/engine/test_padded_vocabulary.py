"""A model with more rows than its tokenizer has tokens: the ids beyond are tokens without text."""

from pathlib import Path

import pytest
import torch
import transformers

from engine.detokenizer import IncrementalDetokenizer
from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_runner import ModelRunner
from engine.testing import (
    TrialRequest,
    TrialResult,
    family_fields,
    make_random_model_folder,
    run_together,
)
from engine.tokenizer import Tokenizer
from scheduling.sampling import SamplingParams

VOCAB_SIZE = 1000
NUM_OUTPUT = 24
PROMPTS = [(5, 6, 7 + number, 300) for number in range(6)]
GREEDY = SamplingParams(temperature=0.0, num_logprobs=5)
DRAWN = SamplingParams(temperature=2.0, seed=3, frequency_penalty=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("padded")
    make_random_model_folder(path, fields=family_fields("llama", vocab_size=VOCAB_SIZE))
    return path


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    loaded = Tokenizer.from_folder(folder)
    assert loaded.vocab_size < VOCAB_SIZE
    return loaded


def run(folder: Path, sampling: SamplingParams) -> list[TrialResult]:
    model = load_model(folder)
    config = model.config
    layout = KvLayout(config.num_layers, config.num_kv_heads, config.head_dim, 16, "float32")
    runner = ModelRunner(model, KvPool(layout, 32), max_num_seqs=len(PROMPTS))
    wanted = [TrialRequest(prompt, NUM_OUTPUT, sampling) for prompt in PROMPTS]
    return run_together(runner, wanted, 16, 32)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_padded_id_has_no_text_and_the_text_around_it_is_whole(
    folder: Path, tokenizer: Tokenizer, sampling: SamplingParams
) -> None:
    for prompt, result in zip(PROMPTS, run(folder, sampling), strict=True):
        known = [token_id for token_id in result.token_ids if token_id < tokenizer.vocab_size]
        assert len(known) < NUM_OUTPUT, "no padded id was drawn: the test shows nothing"
        texts = []
        for token_ids in (result.token_ids, known):
            detokenizer = IncrementalDetokenizer(tokenizer, prompt)
            texts.append("".join(map(detokenizer.step, token_ids)) + detokenizer.finish())
        assert texts[0] == texts[1]
    assert tokenizer.decode([tokenizer.vocab_size, VOCAB_SIZE - 1]) == ""


def test_padded_ids_are_chosen_where_transformers_chooses_them(folder: Path) -> None:
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    prompts = torch.tensor(PROMPTS)
    generated = reference.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        max_new_tokens=NUM_OUTPUT,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    own = [result.token_ids for result in run(folder, GREEDY)]
    assert own == generated[:, prompts.shape[1] :].tolist()
