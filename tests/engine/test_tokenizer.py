"""The same ids and the same text as transformers, from the same folder."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders
from transformers import AutoTokenizer

from engine.model_folder_errors import InvalidTokenizer, ModelFileMissing, UnsupportedModelOption
from engine.tokenizer import Tokenizer
from engine.tokenizer_testing import (
    byte_level_backend,
    metaspace_backend,
    sentencepiece_backend,
    write_tokenizer,
)
from scheduling.errors import InvalidRequest

ROOT = Path(__file__).parents[2]
BACKENDS = {
    "byte level": byte_level_backend,
    "sentencepiece": sentencepiece_backend,
    "metaspace": metaspace_backend,
}


@pytest.fixture(
    scope="module", params=[(k, bos) for k in BACKENDS for bos in (False, True)], ids=str
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    kind, adds_bos = request.param
    folder = tmp_path_factory.mktemp("model")
    # The post-processor of the file decides, whatever the configuration says beside it.
    config = {"add_bos_token": not adds_bos}
    write_tokenizer(folder, BACKENDS[kind](), adds_bos=adds_bos, config=config)
    return Tokenizer.from_folder(folder), AutoTokenizer.from_pretrained(folder)


@given(
    text=st.text(max_size=30) | st.sampled_from(["the fox</s>", "<s> 👍🎉", "<tool call> a"]),
    adds=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_ids_and_text_equal_those_of_transformers(pair: Any, text: str, adds: bool) -> None:
    ours, theirs = pair
    ids = ours.encode(text, add_special_tokens=adds)
    assert ids == theirs.encode(text, add_special_tokens=adds)
    for skips in (True, False):
        assert ours.decode(ids, skip_special_tokens=skips) == theirs.decode(
            ids, skip_special_tokens=skips
        )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
@given(text=st.text(min_size=1, max_size=30) | st.just("<s> 👍🎉</s> "), adds=st.booleans())
def test_the_ids_of_a_long_text_equal_those_of_transformers_too(
    pair: Any, text: str, adds: bool
) -> None:
    """They are computed in another way."""
    ours, theirs = pair
    text *= 2000 // len(text) + 1
    ids = ours.encode(text, add_special_tokens=adds)
    assert ids == theirs.encode(text, add_special_tokens=adds)


def test_the_special_tokens_equal_those_of_transformers(pair: Any) -> None:
    ours, theirs = pair
    assert ours.special_token_by_name == theirs.special_tokens_map
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.special_ids == set(theirs.all_special_ids)
    assert ours.vocab_size == len(theirs)


def test_a_saved_truncation_does_not_cut_a_prompt(tmp_path: Path) -> None:
    backend = byte_level_backend()
    backend.enable_truncation(max_length=3)
    backend.enable_padding(length=50)
    tokenizer = Tokenizer.from_folder(write_tokenizer(tmp_path, backend))
    text = "the quick brown fox jumps"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_named_as_text_or_as_objects(tmp_path: Path) -> None:
    write_tokenizer(
        tmp_path, byte_level_backend(), config={"eos_token": {"content": "</s>"}, "bos_token": None}
    )
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<unk>"}))
    tokenizer = Tokenizer.from_folder(tmp_path)
    assert tokenizer.special_token_by_name == {
        "pad_token": "<unk>",
        "unk_token": "<unk>",
        "eos_token": "</s>",
    }
    assert (tokenizer.bos_id, tokenizer.eos_id) == (None, 2)


def test_threads_share_one_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write_tokenizer(tmp_path, byte_level_backend()))
    text_list = [f"the fox {i} 👍" * 20 for i in range(100)]
    expected = [tokenizer.encode(text) for text in text_list]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(tokenizer.encode, text_list)) == expected


def test_a_text_beyond_the_limit_is_refused_before_any_work(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write_tokenizer(tmp_path, byte_level_backend()), max_chars=5)
    assert tokenizer.encode("12345")
    with pytest.raises(InvalidRequest, match="6 characters, at most 5"):
        tokenizer.encode("123456")


@pytest.mark.parametrize("num_before", [1, 5000])
def test_half_a_surrogate_pair_is_refused(tmp_path: Path, num_before: int) -> None:
    tokenizer = Tokenizer.from_folder(write_tokenizer(tmp_path, byte_level_backend()))
    with pytest.raises(InvalidRequest, match="surrogate"):
        tokenizer.encode("a" * num_before + "\ud800b")


@pytest.mark.parametrize("token_id", [-1, 2**40])
def test_an_impossible_token_id_is_refused(tmp_path: Path, token_id: int) -> None:
    tokenizer = Tokenizer.from_folder(write_tokenizer(tmp_path, byte_level_backend()))
    with pytest.raises(InvalidRequest, match="vocabulary"):
        tokenizer.decode([token_id])


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelFileMissing, match=r"tokenizer\.json.*save the tokenizer"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"model": {"type": "BPE"'])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InvalidTokenizer, match="anew"):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("decoder", "kinds"),
    [
        (None, "none"),
        (decoders.WordPiece(), "WordPiece"),
        (decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)]), "Strip"),
        (decoders.Replace(tokenizers.Regex("a+"), " "), "Replace"),
    ],
)
def test_a_decoder_that_cannot_stream_is_refused_when_it_is_loaded(
    tmp_path: Path, decoder: decoders.Decoder | None, kinds: str
) -> None:
    backend = byte_level_backend()
    backend.decoder = decoder
    with pytest.raises(UnsupportedModelOption, match=rf"decoder \({kinds}.*use a byte-level"):
        Tokenizer.from_folder(write_tokenizer(tmp_path, backend))


def test_the_text_half_of_the_engine_needs_no_torch() -> None:
    modules = "engine.tokenizer, engine.chat_template, engine.detokenizer, engine.model_folder"
    command = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], cwd=ROOT, check=True, timeout=60)
