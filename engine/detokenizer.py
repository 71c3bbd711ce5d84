"""Output text, token by token, on the worker that runs the sequence.

All pieces together are the text of prompt and output less the text of the prompt. A piece is
given out once no later token can change it, and is never taken back.
"""

from collections.abc import Sequence

from engine.token_pieces import Piece
from engine.tokenizer import Tokenizer

_MAX_CHARACTER_BYTES = 4


class IncrementalDetokenizer:
    """The text of one growing sequence; one thread at a time.

    The state follows from the tokens alone, so a sequence may move between workers after any
    number of tokens: the next worker passes prompt and output so far as prompt_tail_ids, and its
    first piece is the very next text, nothing lost and nothing twice.
    """

    __slots__ = ("_is_at_start", "_is_plain", "_pending", "_piece_by_id", "_pieces")

    def __init__(self, tokenizer: Tokenizer, prompt_tail_ids: Sequence[int]) -> None:
        """Begin after a prompt: all of it, or an end of it that holds some text.

        A character that the prompt leaves incomplete is part of the output.
        """
        self._pieces = tokenizer.pieces
        self._piece_by_id = tokenizer.pieces.piece_by_id
        # Bytes of an incomplete character, at most three.
        self._pending = b""
        # No visible token so far: some tokenizers drop the space that begins a text.
        self._is_at_start = True
        # Text of a token can be given out as it is: so it is for nearly every token.
        self._is_plain = False
        for token_id in self._deciding_ids(prompt_tail_ids):
            self.step(token_id)

    def step(self, token_id: int) -> str:
        """The text that is certain now; empty for a special token or a part of a character."""
        piece = self._piece_by_id.get(token_id)
        if self._is_plain and isinstance(piece, str):
            return piece
        return self._step_with_state(token_id)

    def finish(self) -> str:
        """The rest when no token follows: U+FFFD where a character stayed incomplete."""
        text, self._pending = self._pieces.decode_prefix(self._pending, is_final=True)
        return text

    def _step_with_state(self, token_id: int) -> str:
        pieces = self._pieces
        piece: Piece | None
        if self._is_at_start:
            piece = pieces.first_piece(token_id)
            self._is_at_start = piece is None
        else:
            piece = pieces.piece(token_id)
        if not piece:
            text = ""
        elif isinstance(piece, str) and not self._pending:
            text = piece
        else:
            data = self._pending + (piece.encode() if isinstance(piece, str) else piece)
            text, self._pending = pieces.decode_prefix(data, is_final=False)
        self._is_plain = not self._pending and not self._is_at_start
        return text

    def _deciding_ids(self, prompt_ids: Sequence[int]) -> Sequence[int]:
        """The shortest end of the prompt that leads to the same state as all of it."""
        num_bytes = 0
        for start in range(len(prompt_ids) - 1, -1, -1):
            piece = self._pieces.piece(prompt_ids[start])
            num_bytes += len(piece)
            # Whole characters end here, or what is cut off lies behind a whole character.
            if (piece and isinstance(piece, str)) or num_bytes >= _MAX_CHARACTER_BYTES:
                return prompt_ids[start:]
        return prompt_ids
