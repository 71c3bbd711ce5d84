"""A batch of attention from block tables and the pieces of sequences that are computed."""

from collections.abc import Sequence

import numpy as np

from engine.attention.backend import AttentionBatch, IntArray


def batch_over(
    tables: IntArray, pieces: Sequence[tuple[int, int]], block_size: int
) -> AttentionBatch:
    """The tokens (start, count) of sequences with these block tables [num_seqs, n]."""
    first, lengths = (np.array(column, np.int64) for column in zip(*pieces, strict=True))
    tables = tables.copy()
    for table, start, count in zip(tables, first, lengths, strict=True):
        table[-(-(start + count) // block_size) :] = table[0]
    positions = np.concatenate([np.arange(s, s + c) for s, c in zip(first, lengths, strict=True)])
    rows = np.repeat(np.arange(len(pieces)), lengths)
    slots = tables[rows, positions // block_size] * block_size + positions % block_size
    return AttentionBatch(first, lengths, tables, slots)
