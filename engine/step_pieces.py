"""A step in pieces of few tokens, for models that cannot compute any number of them at once."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from scheduling.step import ScheduledChunk


def pieces_of(
    chunks: Sequence[ScheduledChunk], max_rows: int | None
) -> Iterator[Sequence[ScheduledChunk]]:
    """The same tokens in the same order, at most `max_rows` a piece; None: all in one.

    A chunk may be cut; its last part is the one that samples.
    """
    if max_rows is None or sum(chunk.num_tokens for chunk in chunks) <= max_rows:
        yield chunks
        return
    piece: list[ScheduledChunk] = []
    room = max_rows
    for chunk in chunks:
        rest = chunk
        while rest.num_tokens > room:
            if room:
                piece.append(replace(rest, num_tokens=room, samples=False))
                rest = replace(rest, start=rest.start + room, num_tokens=rest.num_tokens - room)
            yield piece
            piece, room = [], max_rows
        piece.append(rest)
        room -= rest.num_tokens
    yield piece
