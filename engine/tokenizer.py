"""Text to token ids and back, as the model's authors defined it in tokenizer.json.

Used by the router (prompts in) and by the workers (tokens out). Imports no torch.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from engine.json_file import read_file, read_json_object
from engine.model_folder_errors import InvalidTokenizer, UnsupportedModelOption
from engine.text_pieces import TokenLengths, known_cuts
from engine.text_places import ends_of_pieces
from engine.token_pieces import TokenPieces
from scheduling.errors import InvalidRequest

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_HINT = "save the tokenizer in the tokenizers library's format into the folder"
_SPECIAL_TOKENS_FILE = "special_tokens_map.json"

# Longer prompts are refused before any work. Some characters a token, times the longest contexts
# in use; tokenising this much takes seconds.
DEFAULT_MAX_CHARS = 4_000_000
# The library gives a batch to threads of its own, even one of a single text: a way of some ten
# microseconds.
_LONG_TEXT = 1024
# While it works, the library takes several hundred times the memory of what it is given at once.
# A piece of this size takes it 10 ms.
PIECE_CHARS = 12_288

# The names under which a chat template sees the model's special tokens.
_SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def read_backend(file: Path) -> tokenizers.Tokenizer:
    """What the library makes of tokenizer.json.

    Raises: ModelFolderMissing, ModelFileMissing, InvalidTokenizer.
    """
    content = read_file(file, TOKENIZER_HINT)
    try:
        return tokenizers.Tokenizer.from_buffer(content)
    except ValueError as error:
        raise InvalidTokenizer(file, f"is not a tokenizer ({error})") from None


class Tokenizer:
    """One model's tokenizer. Immutable after loading, so any thread may call it at any time.

    The library releases the interpreter while it encodes: threads of a pool run at once.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        special_token_by_name: dict[str, str],
        *,
        max_chars: int = DEFAULT_MAX_CHARS,
    ) -> None:
        # A prompt is never cut or padded in silence, whatever the file was saved with.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._cuts = known_cuts(backend)
        # bos_token, eos_token and so on, as a chat template names them.
        self.special_token_by_name = special_token_by_name
        self.max_chars = max_chars
        # Ids whose text is never shown.
        self.special_ids = frozenset(
            token_id
            for token_id, token in backend.get_added_tokens_decoder().items()
            if token.special
        )
        # What each token contributes to a growing text.
        self.pieces = TokenPieces(backend)
        # Ids that the tokenizer knows; a model may have more rows in its embedding.
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_folder(cls, path: str | Path, *, max_chars: int = DEFAULT_MAX_CHARS) -> "Tokenizer":
        """Load tokenizer.json, and the names of the special tokens from the files beside it.

        Raises: ModelFolderMissing, ModelFileMissing, InvalidModelJson, InvalidTokenizer,
            UnsupportedModelOption when the text of tokens cannot be streamed.
        """
        folder = Path(path)
        file = folder / TOKENIZER_FILE
        backend = read_backend(file)
        special_token_by_name = _special_tokens(folder)
        try:
            return cls(backend, special_token_by_name, max_chars=max_chars)
        except ValueError as error:
            hint = "use a byte-level BPE or sentencepiece-style tokenizer"
            raise UnsupportedModelOption(file, str(error), hint) from None

    @property
    def eos_id(self) -> int | None:
        """Id of the token named eos_token; None where there is none. Generation may end at more."""
        return self._id_of_name("eos_token")

    @property
    def bos_id(self) -> int | None:
        """Id of the token named bos_token; None where there is none."""
        return self._id_of_name("bos_token")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; special tokens written out in it become their ids.

        With add_special_tokens the file's post-processor adds what it adds (often a BOS). Text
        that a chat template rendered already holds them.
        Raises: InvalidRequest when the text is too long, or is not Unicode text.
        """
        self._require_length(text)
        try:
            if len(text) <= _LONG_TEXT:
                return self._backend.encode(text, add_special_tokens=add_special_tokens).ids
            # The same ids in half the time: it does not note where in the text each came from.
            batch = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
            return batch[0].ids
        except (UnicodeEncodeError, TypeError):
            raise InvalidRequest("prompt", "holds half of a surrogate pair; send text") from None

    def ends_of_pieces(self, text: str, piece_chars: int = PIECE_CHARS) -> list[int]:
        """Where `encode_pieces` may cut; the end alone where nothing is known to be safe.

        Raises: InvalidRequest when the text is too long.
        """
        self._require_length(text)
        cuts = self._cuts
        return [len(text)] if cuts is None else ends_of_pieces(text, piece_chars, cuts.places)

    def encode_pieces(
        self, text: str, ends: Sequence[int], *, add_special_tokens: bool = True
    ) -> Iterator[list[int]]:
        """What `encode` gives, piece by piece; `ends` are those of `ends_of_pieces`.

        Raises: InvalidRequest where it comes to what is not Unicode text.
        """
        if self._cuts is None or len(ends) == 1:
            yield self.encode(text, add_special_tokens=add_special_tokens)
            return
        if add_special_tokens:
            yield list(self._cuts.before)
        start = 0
        for end in ends:
            yield self.encode(text[start:end], add_special_tokens=False)
            start = end
        if add_special_tokens:
            yield list(self._cuts.after)

    @cached_property
    def token_lengths(self) -> TokenLengths:
        """How many tokens a text has at least; looking through the vocabulary takes a while."""
        return TokenLengths(self._backend)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of whole sequences; for a sequence that still grows see engine.detokenizer.

        An id that the tokenizer does not know has no text.
        Raises: InvalidRequest for an id that no tokenizer can have.
        """
        try:
            return self._backend.decode(token_ids, skip_special_tokens=skip_special_tokens)
        except OverflowError:
            raise InvalidRequest("token_ids", "must be between 0 and the vocabulary size") from None

    def token_of(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it; None for an unknown id."""
        return self._backend.id_to_token(token_id)

    def id_of(self, token: str) -> int | None:
        """The id of a token as the vocabulary spells it; None for an unknown one."""
        return self._backend.token_to_id(token)

    def _require_length(self, text: str) -> None:
        if len(text) > self.max_chars:
            raise InvalidRequest(
                "prompt",
                f"has {len(text)} characters, at most {self.max_chars} are read; shorten it",
            )

    def _id_of_name(self, name: str) -> int | None:
        token = self.special_token_by_name.get(name)
        return None if token is None else self.id_of(token)


def _special_tokens(folder: Path) -> dict[str, str]:
    fields: dict[str, Any] = {}
    for name in (_SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE):
        if (folder / name).is_file():
            fields |= {k: v for k, v in read_json_object(folder / name).items() if v is not None}
    token_by_name = {}
    for name in _SPECIAL_NAMES:
        value = fields.get(name)
        token = value.get("content") if isinstance(value, dict) else value
        if isinstance(token, str):
            token_by_name[name] = token
    return token_by_name
