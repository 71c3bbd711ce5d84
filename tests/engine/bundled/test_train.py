"""Training of the bundled model, with a few steps on a few sentences."""

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

from engine.bundled import verify_checksums
from engine.bundled.corpus import build_corpus
from engine.bundled.folder import write_model
from engine.bundled.network import NetworkShape, TrainingNetwork
from engine.bundled.optimisation import (
    TrainingDiverged,
    TrainingPlan,
    has_long_rows,
    learning_rate,
    train,
)
from engine.bundled.token_stream import (
    BatchShape,
    EncodedCorpus,
    EncodedExchange,
    TokenStream,
    chat_corpus,
    conversation_tokens,
    encode_corpus,
    epoch_tokens,
)
from engine.bundled.train import main
from engine.bundled.vocabulary import SPECIAL_TOKENS, train_tokenizer
from runtime.clock import ManualClock

_TEXT = """
Built-in Functions
==================

.. function:: len(s)

   Return the length (the number of items) of an object. The argument may be a sequence.

.. function:: sum(items)

   Add the items of an iterable from left to right and return the total.

What is a list?
---------------

A list is a sequence that can grow and shrink while a program is running.
"""
_CORPUS = build_corpus({"library/functions": _TEXT})
_SHAPE = NetworkShape(
    vocab_size=320, hidden_size=32, intermediate_size=48, num_layers=2, head_dim=16
)


@pytest.fixture(autouse=True)
def _single_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(_CORPUS.training_texts(), _SHAPE.vocab_size)


def test_the_command_writes_the_same_whole_folder_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text" / "library"
    text.mkdir(parents=True)
    (text / "functions.rst").write_text(_TEXT)
    options = ["--text", str(text.parent), "--chat-steps", "1", "--no-compile", "--threads", "1"]
    for name in ("first", "second"):
        assert main(["--out", str(tmp_path / name), "--steps", "1", *options]) == 0
    printed = capsys.readouterr()
    # Two phases of one step, in both runs.
    assert printed.err.count("step 1/1") == 4
    assert printed.out.count('"num_steps": 1') == 4
    verify_checksums(tmp_path / "first")
    report = json.loads((tmp_path / "first" / "training.json").read_text())
    assert 1_800_000 < report["num_parameters"] < 2_400_000
    assert report["validation_loss"] < 8
    first, second = (tmp_path / name / "model.safetensors" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "first", dtype=torch.float32)
    assert loaded.config.num_key_value_heads == 2
    assert loaded.config.head_dim == 64
    start = ["--start-from", str(tmp_path / "first")]
    assert main(["--out", str(tmp_path / "third"), *start, *options]) == 0
    continued = json.loads((tmp_path / "third" / "training.json").read_text())
    assert continued["phases"]["start"] == report
    assert continued["validation_loss"] < report["validation_loss"]


def test_a_start_that_is_no_result_of_the_command_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "functions.rst").write_text(_TEXT)
    paths = ["--text", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main([*paths, "--start-from", str(tmp_path)]) == 1
    assert "model.safetensors is missing" in capsys.readouterr().err


def test_a_folder_without_text_is_refused_with_a_hint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "out"), "--text", str(tmp_path)]) == 1
    assert "--text" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_saved_weights_give_the_same_logits_in_transformers(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    torch.manual_seed(7)
    network = TrainingNetwork(_SHAPE)
    for parameter in network.parameters():
        # Far from the start of training, so that every layer matters and no two norms agree; only
        # what bfloat16 can hold, so that saving changes nothing.
        scattered = parameter.data * 5 + 0.1 * torch.randn_like(parameter)
        parameter.data = scattered.to(torch.bfloat16).float()
    write_model(
        network, tokenizer, tmp_path, report={}, words=[], licence="The licence of the text."
    )
    reference = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    token_ids = torch.randint(0, _SHAPE.vocab_size, (2, 40))
    with torch.no_grad():
        expected = reference(token_ids).logits
        torch.testing.assert_close(network(token_ids), expected, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "LICENSE-TEXT").read_text() == "The licence of the text."


def test_training_rows_follow_the_chat_template(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_model(TrainingNetwork(_SHAPE), tokenizer, tmp_path, report={}, words=[], licence=None)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    exchange = encode_corpus(_CORPUS, tokenizer).exchanges[0]
    trained_on = conversation_tokens([exchange, exchange], random.Random(3))
    rng = random.Random(3)
    messages = []
    for _ in range(2):
        question = tokenizer.decode(list(rng.choice(exchange.questions)))
        answer = tokenizer.decode(list(exchange.answer))
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    rendered = saved.apply_chat_template(messages, tokenize=False)
    assert saved(rendered, add_special_tokens=False).input_ids == trained_on
    asked = saved.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert rendered.startswith(asked)


def test_a_system_message_opens_the_turn_of_the_user(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_model(TrainingNetwork(_SHAPE), tokenizer, tmp_path, report={}, words=[], licence=None)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a list?"},
    ]
    rendered = saved.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|bos|><|user|>Be brief. What is a list?<|assistant|>"


def test_every_text_survives_the_tokenizer(tokenizer: Tokenizer) -> None:
    for text in (
        "Return the length.",
        "naïve café ☃",
        "  two  spaces\n\tand a tab",
        "<|no token|>",
    ):
        ids = tokenizer.encode(text).ids
        assert ids[0] == SPECIAL_TOKENS.index("<|bos|>")
        assert tokenizer.decode(ids) == text


def test_batches_continue_each_other_and_repeat_with_the_seed(tokenizer: Tokenizer) -> None:
    corpus = encode_corpus(_CORPUS, tokenizer)
    short, long = BatchShape(num_rows=3, length=16), BatchShape(num_rows=1, length=200)
    first, second, other = TokenStream(corpus, 1), TokenStream(corpus, 1), TokenStream(corpus, 2)
    batches = [first.next_batch(shape) for shape in (short, long, short)]
    assert [tuple(batch.shape) for batch in batches] == [(3, 17), (1, 201), (3, 17)]
    assert torch.equal(batches[0][0, -1], batches[0][1, 0])
    assert torch.equal(batches[0][-1, -1], batches[1][0, 0])
    for shape, batch in zip((short, long, short), batches, strict=True):
        assert torch.equal(second.next_batch(shape), batch)
    assert not torch.equal(other.next_batch(long), batches[1])


def test_the_second_phase_asks_what_is_asked_most_among_few_passages() -> None:
    often = EncodedExchange(((11,), (12,)), (13,), weight=4.0)
    rarely = EncodedExchange(((21,),), (23,), weight=0.6)
    everything = EncodedCorpus(tuple((31,) for _ in range(1000)), (often, rarely))
    tokens = epoch_tokens(chat_corpus(everything, min_weight=4.0), random.Random(1))
    assert tokens.count(13) == 1
    assert tokens.count(23) == 0
    assert 1 <= tokens.count(31) <= 80
    assert epoch_tokens(everything, random.Random(1)).count(31) == 1000


def test_the_learning_rate_rises_then_falls_to_its_floor() -> None:
    plan = TrainingPlan(num_steps=1000, minutes=1)
    rates = [learning_rate(step, 1000, plan) for step in range(1001)]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(plan.peak_learning_rate * plan.final_fraction)


@pytest.mark.parametrize("spreads", [False, True])
def test_the_planned_share_of_steps_has_long_rows(spreads: bool) -> None:
    plan = TrainingPlan(num_steps=1000, minutes=1, spreads_long_rows=spreads)
    long_steps = [step for step in range(1000) if has_long_rows(step, 1000, plan)]
    assert len(long_steps) == pytest.approx(1000 * plan.long_fraction, abs=1)
    assert long_steps[-1] > 990
    assert (long_steps[0] < 10) == spreads


def test_training_lowers_the_loss_and_stops_when_it_is_not_a_number(tokenizer: Tokenizer) -> None:
    torch.manual_seed(1)
    network = TrainingNetwork(_SHAPE)
    rows = BatchShape(num_rows=4, length=32)
    plan = TrainingPlan(60, 1, rows, rows, num_warmup_steps=2, use_compile=False)
    corpus = encode_corpus(_CORPUS, tokenizer)
    lines: list[str] = []
    result = train(network, TokenStream(corpus, 1), plan, ManualClock(), lines.append)
    assert result.num_steps == 60
    assert result.final_loss < 4.5
    assert lines[-1].startswith("step 60/60")
    network.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(TrainingDiverged, match="--no-compile"):
        train(network, TokenStream(corpus, 1), plan, ManualClock(), lines.append)
