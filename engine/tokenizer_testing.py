"""Small tokenizers of the kinds in use, trained in a moment, and folders that hold one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from engine.tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
SPECIAL_TOKEN_BY_NAME = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}

_CORPUS = (
    "the quick brown fox jumps over the lazy dog, and the dog answers: what is it?",
    "Blocks move from the prefill worker to the decode worker while the prompt is computed.",
    "naïve café, größer, señor; 你好世界 こんにちは; 👍🎉 and e\u0301 combine",
)


def byte_level_backend() -> tokenizers.Tokenizer:
    """Byte-level BPE, as Llama 3 and Qwen2: a token may be a part of a character."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(backend, vocab_size=360, alphabet=alphabet)
    backend.add_tokens(["<tool call>"])
    return backend


def sentencepiece_backend(*, strips_first_space: bool = True) -> tokenizers.Tokenizer:
    """As Llama 2: spaces as U+2581, and a byte token for each byte of an unknown character."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps: list[decoders.Decoder] = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
    ]
    if strips_first_space:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    _train(backend, vocab_size=120, alphabet=list("abcdefghijklmnopqrstuvwxyz,.:▁"))
    return _with_byte_tokens(backend)


def metaspace_backend() -> tokenizers.Tokenizer:
    """Whole characters only; the decoder drops the spaces of the first token."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    _train(backend, vocab_size=200, alphabet=list("abcdefghijklmnopqrstuvwxyz"))
    return backend


def write_tokenizer(
    folder: Path,
    backend: tokenizers.Tokenizer,
    *,
    adds_bos: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write tokenizer.json and tokenizer_config.json as a published model has them."""
    if adds_bos:
        bos = ("<s>", backend.token_to_id("<s>"))
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[bos]
        )
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / TOKENIZER_FILE))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", **SPECIAL_TOKEN_BY_NAME}
    (folder / TOKENIZER_CONFIG_FILE).write_text(json.dumps({**fields, **(config or {})}))
    return folder


def _train(backend: tokenizers.Tokenizer, *, vocab_size: int, alphabet: list[str]) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)


def _with_byte_tokens(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    description = json.loads(backend.to_str())
    vocabulary = description["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    description["model"]["byte_fallback"] = True
    return tokenizers.Tokenizer.from_str(json.dumps(description))
