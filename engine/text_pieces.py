"""What can be known of a text's token ids from the kind of its tokenizer, before all of it is read.

A long text may be cut where its pieces have, one after the other, the ids of the whole: where no
word goes on (`engine/text_places.py`), for the byte-level tokenizers whose rules say so. And no
token stands for more characters than the longest one of the vocabulary has. Where neither is
certain, the answer is that it is not known.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers

from engine.text_places import Places, places_outside

# How Llama 3 and Qwen 2 divide a text into words; GPT-2's rule is a part of ByteLevel itself.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KNOWN_WORDS = frozenset({_WORDS % "", _WORDS % "{1,3}"})
# What NFC makes one character of had at most four.
_MOST_COMPOSED = 4

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cuts:
    """A tokenizer whose texts may be cut, and the ids that it puts around a whole one."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    places: Places


def known_cuts(backend: tokenizers.Tokenizer) -> Cuts | None:
    """None where pieces might have other ids than the whole."""
    model = backend.model
    added = backend.get_added_tokens_decoder().values()
    places = places_outside(token.content for token in added)
    is_known = (
        isinstance(model, models.BPE)
        and not model.dropout
        and all(step["type"] == "NFC" for step in _steps(backend.normalizer, "normalizers"))
        and _divides_into_words(_steps(backend.pre_tokenizer, "pretokenizers"))
        and not any(token.lstrip or token.rstrip or token.single_word for token in added)
    )
    around = _put_around(backend.post_processor)
    return Cuts(*around, places) if is_known and around and places else None


class TokenLengths:
    """How many tokens a text has at least."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        vocabulary = backend.get_vocab(with_added_tokens=True)
        # None: a token may stand for any number of characters.
        self.longest = max(map(len, vocabulary)) if _keeps_all(backend) else None
        added = backend.get_added_tokens_decoder().values()
        self._strips = any(token.lstrip or token.rstrip for token in added)
        normalizers = _steps(backend.normalizer, "normalizers")
        self._composes = any(step["type"] == "NFC" for step in normalizers)

    def fewest(self, text: str) -> int:
        """Never more than the text has."""
        if self.longest is None:
            return 0
        # Anything but spaces around an added token is still there when tokens are chosen.
        num_chars = sum(map(len, text.split())) if self._strips else len(text)
        if self._composes and not text.isascii():
            num_chars //= _MOST_COMPOSED
        return -(-num_chars // self.longest)


def _steps(part: Any, name: str) -> list[Json]:
    """A part of the pipeline, step by step; the library tells its settings as JSON."""
    return [] if part is None else _flattened(json.loads(part.__getstate__()), name)


def _flattened(step: Json, name: str) -> list[Json]:
    if step["type"] != "Sequence":
        return [step]
    return [each for part in step[name] for each in _flattened(part, name)]


def _divides_into_words(steps: Sequence[Json]) -> bool:
    match steps:
        case [{"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}]:
            return True
        case [
            {
                "type": "Split",
                "pattern": {"Regex": str(words)},
                "behavior": "Isolated",
                "invert": False,
            },
            {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
        ]:
            return words in _KNOWN_WORDS
    return False


def _put_around(processor: Any) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The ids that a post-processor adds; None where it is of another kind."""
    # A byte-level one changes only what is noted beside the ids.
    steps = [step for step in _steps(processor, "processors") if step["type"] != "ByteLevel"]
    match steps:
        case []:
            return (), ()
        case [{"type": "TemplateProcessing", "single": parts, "special_tokens": tokens}]:
            kinds = ["Sequence" in part for part in parts]
            if kinds.count(True) == 1:
                at = kinds.index(True)
                return _ids_of(parts[:at], tokens), _ids_of(parts[at + 1 :], tokens)
    return None


def _ids_of(parts: Sequence[Json], tokens: Json) -> tuple[int, ...]:
    names = [part["SpecialToken"]["id"] for part in parts]
    return tuple(token_id for name in names for token_id in tokens[name]["ids"])


def _keeps_all(backend: tokenizers.Tokenizer) -> bool:
    """Whether every character of a text is in a token, and no token is for unknown ones."""
    model = backend.model
    if not isinstance(model, models.BPE):
        return False
    for step in _steps(backend.normalizer, "normalizers"):
        match step:
            case {"type": "NFC" | "Prepend"}:
                pass
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                if len(new) < len(old):
                    return False
            case _:
                return False
    steps = _steps(backend.pre_tokenizer, "pretokenizers")
    for step in steps:
        match step:
            case {"type": "ByteLevel" | "Metaspace" | "Digits"}:
                pass
            case {"type": "Split", "behavior": behavior} if behavior != "Removed":
                pass
            case _:
                return False
    if any(step["type"] == "ByteLevel" for step in steps):
        needed = pre_tokenizers.ByteLevel.alphabet()
    elif model.byte_fallback:
        needed = [f"<0x{byte:02X}>" for byte in range(256)]
    else:
        return False
    return all(backend.token_to_id(token) is not None for token in needed)
