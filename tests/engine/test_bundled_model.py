"""The published model: whole, readable by transformers, and able to write words."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from engine.bundled import (
    BundledModelDamaged,
    bundled_model_path,
    verify_bundled_model,
    verify_checksums,
)
from engine.bundled.prompts import DEMO_PROMPTS, DemoPrompt

# What counts as language. Of the words in an answer, this share must be frequent words of the
# training text (words.txt); no token may take a larger share, or stand more often in a row, than
# this. Greedy answers may still repeat a sentence: models of this size do.
MIN_KNOWN_WORD_FRACTION = 0.9
MAX_ONE_TOKEN_FRACTION = 0.25
MAX_RUN_OF_ONE_TOKEN = 2
_WORD = re.compile(r"[A-Za-z]{2,}")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(bundled_model_path())


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.set_num_threads(1)
    return LlamaForCausalLM.from_pretrained(bundled_model_path(), dtype=torch.float32)


def _prompt_ids(tokenizer: PreTrainedTokenizerFast, prompt: DemoPrompt) -> list[int]:
    text = prompt.text
    if prompt.is_chat:
        messages = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    token_ids: list[int] = tokenizer(text, add_special_tokens=not prompt.is_chat).input_ids
    return token_ids


def _greedy(model: LlamaForCausalLM, prompt_ids: list[int], max_tokens: int) -> list[int]:
    inputs = torch.tensor([prompt_ids])
    made = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=max_tokens,
        do_sample=False,
        temperature=None,
        top_k=None,
    )
    token_ids: list[int] = made[0, len(prompt_ids) :].tolist()
    return token_ids


def _problems(tokenizer: PreTrainedTokenizerFast, token_ids: list[int]) -> list[str]:
    """What keeps these tokens from being language; empty when nothing does."""
    frequent = set((bundled_model_path() / "words.txt").read_text().split())
    words = _WORD.findall(tokenizer.decode(token_ids, skip_special_tokens=True))
    known = [word for word in words if word in frequent]
    longest_run = run = 1
    for previous, current in pairwise(token_ids):
        run = run + 1 if current == previous else 1
        longest_run = max(longest_run, run)
    problems = []
    if len(words) < 5 or len(known) < MIN_KNOWN_WORD_FRACTION * len(words):
        problems.append(f"{len(known)} of {len(words)} words are known")
    token_id, count = Counter(token_ids).most_common(1)[0]
    if count > MAX_ONE_TOKEN_FRACTION * len(token_ids):
        problems.append(f"token {token_id} is {count} of {len(token_ids)} tokens")
    if longest_run > MAX_RUN_OF_ONE_TOKEN:
        problems.append(f"one token stands {longest_run} times in a row")
    return problems


def test_every_file_is_the_one_that_was_published() -> None:
    verify_bundled_model()
    listed = (bundled_model_path() / "SHA256SUMS").read_text()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "LICENSE-TEXT"):
        assert name in listed


@pytest.fixture
def copied_folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundled_model_path(), tmp_path / "model"))


def test_a_changed_byte_is_named_with_what_to_do(copied_folder: Path) -> None:
    weights = copied_folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BundledModelDamaged, match="git checkout") as raised:
        verify_checksums(copied_folder)
    assert raised.value.path == weights


@pytest.mark.parametrize("name", ["tokenizer.json", "SHA256SUMS"])
def test_a_missing_file_is_named(copied_folder: Path, name: str) -> None:
    (copied_folder / name).unlink()
    with pytest.raises(BundledModelDamaged, match="cannot be read") as raised:
        verify_checksums(copied_folder)
    assert raised.value.path == copied_folder / name


@pytest.mark.parametrize("content", ["", "no hash here\n", "00  ../../etc/passwd\n"])
def test_a_list_of_hashes_that_lists_nothing_usable_is_refused(
    copied_folder: Path, content: str
) -> None:
    (copied_folder / "SHA256SUMS").write_text(content)
    with pytest.raises(BundledModelDamaged):
        verify_checksums(copied_folder)


def test_asking_for_the_path_does_not_import_torch() -> None:
    program = (
        "import sys, engine.bundled, engine.bundled.prompts; "
        "engine.bundled.verify_bundled_model(); "
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], cwd=root, timeout=60, check=True)


def test_the_shape_is_the_documented_one(model: LlamaForCausalLM) -> None:
    config = model.config
    assert (config.num_key_value_heads, config.head_dim, config.vocab_size) == (2, 64, 2048)
    assert config.max_position_embeddings == 2048
    assert 1_800_000 < sum(parameter.numel() for parameter in model.parameters()) < 2_400_000


@pytest.mark.parametrize("prompt", DEMO_PROMPTS, ids=lambda prompt: prompt.text)
def test_greedy_answers_to_the_demo_prompts_are_language(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: DemoPrompt
) -> None:
    answer = _greedy(model, _prompt_ids(tokenizer, prompt), prompt.max_tokens)
    assert _problems(tokenizer, answer) == []
    if prompt.is_chat:
        assert answer[-1] == tokenizer.eos_token_id


def test_a_random_model_does_not_write_language(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(1)
    untrained = LlamaForCausalLM(LlamaConfig.from_pretrained(bundled_model_path())).float()
    answer = _greedy(untrained, _prompt_ids(tokenizer, DEMO_PROMPTS[0]), 64)
    assert _problems(tokenizer, answer) != []
    scattered = torch.randint(5, 2048, (64,)).tolist()
    assert _problems(tokenizer, scattered) != []


def test_the_end_of_the_context_is_as_usable_as_its_beginning(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    report = json.loads((bundled_model_path() / "training.json").read_text())
    assert report["loss_last_quarter"] < report["loss_first_quarter"] + 0.1
    # A chat that fills the context and then asks its first question once more.
    questions = [prompt for prompt in DEMO_PROMPTS if prompt.is_chat]
    turns: list[int] = []
    for prompt in questions:
        asked = _prompt_ids(tokenizer, prompt)
        turns += asked + _greedy(model, asked, prompt.max_tokens)
    question = _prompt_ids(tokenizer, questions[0])
    room = model.config.max_position_embeddings - questions[0].max_tokens - len(question)
    late = (turns * (room // len(turns) + 1))[:room] + question
    answer = _greedy(model, late, questions[0].max_tokens)
    assert _problems(tokenizer, answer) == []
    assert answer[-1] == tokenizer.eos_token_id
