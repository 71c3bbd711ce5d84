"""What each token contributes to the text: characters, or bytes of a character that others finish.

The decoders of the Llama and Qwen families map every token on its own (only the first one of a
text is special), so output can be decoded token by token with a few bytes of state, as the
library decodes the whole sequence. A decoder that does not work so is refused when it is loaded.
"""

import codecs
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tokenizers

# Text, or bytes that are not valid UTF-8 by themselves. Empty: a special or unknown token.
Piece = str | bytes

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_UNDECODABLE_BYTE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class _DecoderRule:
    # The spelling of a token in the vocabulary -> what it stands for.
    piece_of: Callable[[str], Piece]
    # The same for the first visible token of a text.
    first_piece_of: Callable[[str], Piece]
    # A damaged character becomes one U+FFFD (False) or one for each of its bytes (True).
    replaces_each_byte: bool = False


class TokenPieces:
    """The pieces of one vocabulary, found on first use and kept.

    Threads may share it: two that miss at once compute the same piece.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        """Raises: ValueError when the tokenizer's decoder is not of a known kind."""
        self._backend = backend
        self._rule = _decoder_rule(backend.decoder)
        added = backend.get_added_tokens_decoder().values()
        self._special_tokens = frozenset(token.content for token in added if token.special)
        # Read by detokenizers directly, once a token; never larger than the vocabulary.
        self.piece_by_id: dict[int, Piece] = {}

    def piece(self, token_id: int) -> Piece:
        """What the token stands for after another visible token."""
        piece = self.piece_by_id.get(token_id)
        if piece is None:
            token = self._backend.id_to_token(token_id)
            if token is None:
                return ""
            is_special = token in self._special_tokens
            piece = "" if is_special else _text_if_complete(self._rule.piece_of(token))
            self.piece_by_id[token_id] = piece
        return piece

    def first_piece(self, token_id: int) -> Piece | None:
        """What the token stands for as the first of a text; None when it is not visible."""
        token = self._backend.id_to_token(token_id)
        if token is None or token in self._special_tokens:
            return None
        return _text_if_complete(self._rule.first_piece_of(token))

    def decode_prefix(self, data: bytes, *, is_final: bool) -> tuple[str, bytes]:
        """The text that is certain, and the bytes (at most three) that may still become one more.

        Nothing is left over when is_final. What is not UTF-8 becomes U+FFFD.
        """
        errors = "surrogateescape" if self._rule.replaces_each_byte else "replace"
        text, num_bytes = codecs.utf_8_decode(data, errors, is_final)
        if self._rule.replaces_each_byte:
            text = _UNDECODABLE_BYTE.sub("\ufffd", text)
        return text, data[num_bytes:]


def _text_if_complete(piece: Piece) -> Piece:
    if isinstance(piece, str):
        return piece
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return piece


def _decoder_rule(decoder: Any) -> _DecoderRule:
    # The library offers a decoder's settings only in its pickled form, which is JSON.
    steps = [] if decoder is None else _flattened(json.loads(decoder.__getstate__()))
    match steps:
        case [{"type": "ByteLevel"}]:
            return _DecoderRule(_byte_level_piece, _byte_level_piece)
        case [{"type": "Metaspace", "replacement": str(mark), "prepend_scheme": str(scheme)}]:
            return _metaspace_rule(mark, is_first_bare=scheme != "never")
        case [{"type": "Replace", "pattern": {"String": str(mark)}, "content": str(text)}, *rest]:
            return _sentencepiece_rule(mark, text, rest)
    kinds = ", ".join(step["type"] for step in steps) or "none"
    raise ValueError(f"decoder ({kinds})")


def _flattened(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _flattened(part)]


def _metaspace_rule(mark: str, *, is_first_bare: bool) -> _DecoderRule:
    first_text = "" if is_first_bare else " "
    return _DecoderRule(
        piece_of=lambda token: token.replace(mark, " "),
        first_piece_of=lambda token: token.replace(mark, first_text),
    )


def _sentencepiece_rule(mark: str, text: str, rest: list[dict[str, Any]]) -> _DecoderRule:
    """Replace, ByteFallback?, Fuse?, Strip?: how converted sentencepiece models are written."""
    has_byte_tokens = bool(rest) and rest[0]["type"] == "ByteFallback"
    match rest[1:] if has_byte_tokens else rest:
        case [] | [{"type": "Fuse"}]:
            stripped = ""
        case [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]:
            stripped = " "
        case unknown:
            raise ValueError(
                f"decoder ({', '.join(step['type'] for step in unknown)} after Replace)"
            )

    def piece_of(token: str) -> Piece:
        token = token.replace(mark, text)
        byte = _BYTE_TOKEN.fullmatch(token) if has_byte_tokens else None
        return bytes.fromhex(byte[1]) if byte else token

    def first_piece_of(token: str) -> Piece:
        piece = _text_if_complete(piece_of(token))
        return piece.removeprefix(stripped) if isinstance(piece, str) else piece

    return _DecoderRule(piece_of, first_piece_of, replaces_each_byte=has_byte_tokens)


def _byte_by_character() -> dict[str, int]:
    """Byte-level BPE spells bytes that are no printable Latin-1 character from U+0100 on.

    Source: GPT-2, Radford et al. 2019.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    spelled_by_offset = {chr(0x100 + offset): byte for offset, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | spelled_by_offset


_BYTE_BY_CHARACTER = _byte_by_character()


def _byte_level_piece(token: str) -> Piece:
    try:
        return bytes(_BYTE_BY_CHARACTER[character] for character in token)
    except KeyError:
        # An added token is spelled as it reads.
        return token
