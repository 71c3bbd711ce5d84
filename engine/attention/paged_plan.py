"""A step's sequences as FlashInfer wants them: lists of pages laid end to end."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine.attention.backend import AttentionBatch

Int32Array = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class PagedPlan:
    """Some sequences of a batch. A page is a KV block."""

    # [num_seqs + 1] where the query tokens of each sequence begin, counted from the first.
    qo_indptr: Int32Array
    # [num_seqs + 1] where the pages of each sequence begin in `indices`.
    indptr: Int32Array
    # [indptr[-1]] blocks in token order, only those that hold tokens.
    indices: Int32Array
    # [num_seqs] tokens in the last page of each sequence, 1 to block_size.
    last_page_len: Int32Array


def plan_pages(
    batch: AttentionBatch,
    first: int,
    last: int,
    block_size: int,
    left_out: npt.NDArray[np.int64] | None = None,
) -> PagedPlan:
    """The sequences [first, last) of the batch; every length counts the tokens of this step.

    `left_out` [last - first]: pages at the beginning of each that it does without.
    """
    num_queries = batch.num_queries[first:last]
    lengths = batch.starts[first:last] + num_queries
    num_pages = -(-lengths // block_size)
    tables = batch.block_tables[first:last]
    skipped = np.zeros_like(num_pages) if left_out is None else left_out
    places = np.arange(tables.shape[1])
    is_held = (places >= skipped[:, None]) & (places < num_pages[:, None])
    return PagedPlan(
        qo_indptr=_ends_from_zero(num_queries),
        indptr=_ends_from_zero(num_pages - skipped),
        indices=tables[is_held].astype(np.int32),
        last_page_len=(lengths - (num_pages - 1) * block_size).astype(np.int32),
    )


def _ends_from_zero(counts: npt.NDArray[np.int64]) -> Int32Array:
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
