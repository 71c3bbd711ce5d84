"""Names for the beginnings of prompts: what is equal gets an equal name."""

from collections.abc import Sequence


class PieceNames:
    """Cuts prompts that are made of blocks of any size into pieces of one size, and names these.

    A block's id names its content, not what stands before it. The name of a piece stands for all
    blocks from the start up to the one that holds its last token, and for its place: so two pieces
    of equal name are the same blocks up to there.
    """

    def __init__(self, piece_tokens: int) -> None:
        self._piece_tokens = piece_tokens
        # Chains of blocks seen so far: (chain before the block, id, tokens) -> chain, and the names
        # of the pieces that end in its last block. 0 is the empty chain.
        self._chains: dict[tuple[int, int, int], tuple[int, tuple[int, ...]]] = {}
        self._num_names = 0

    def of_blocks(self, ids: Sequence[int], num_tokens: Sequence[int]) -> tuple[int, ...]:
        """Names of all full pieces; num_tokens[i] >= 1 is the size of block ids[i]."""
        chain = covered = 0
        names: list[int] = []
        for block_id, block_tokens in zip(ids, num_tokens, strict=True):
            covered += block_tokens
            link = chain, block_id, block_tokens
            if link not in self._chains:
                num_pieces = covered // self._piece_tokens - len(names)
                new = tuple(range(self._num_names, self._num_names + num_pieces))
                self._num_names += num_pieces
                self._chains[link] = len(self._chains) + 1, new
            chain, ending_here = self._chains[link]
            names += ending_here
        return tuple(names)


class RunNames:
    """Names for the numbered blocks of one conversation, from `first_name` on.

    Each name is one object, however often it is asked for: a conversation repeats its beginning
    in every turn.
    """

    def __init__(self, first_name: int) -> None:
        # names[i] is first_name + i; grows to the highest number seen.
        self._names: list[int] = []
        self._first_name = first_name

    @property
    def num_names(self) -> int:
        """How many are kept."""
        return len(self._names)

    def of_runs(self, runs: Sequence[tuple[int, int]]) -> tuple[int, ...]:
        """Names of the blocks first, first + 1, ... (count of them) of each run (first, count)."""
        end = max((first + count for first, count in runs), default=0)
        known = len(self._names)
        self._names += range(self._first_name + known, self._first_name + end)
        names: list[int] = []
        for first, count in runs:
            names += self._names[first : first + count]
        return tuple(names)
