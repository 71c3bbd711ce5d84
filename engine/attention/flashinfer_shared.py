"""A shared beginning by FlashInfer's kernels: its pages once, with the queries of all who share it.

Attention over the beginning and over what follows are joined by their weights (`merge_state`). Both
parts are rounded to the type of the queries first, and tiles follow the number of queries: a token
that shares has other last bits than alone. See docs/decisions/shared-prefix-attention.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.attention.backend import AttentionBatch, IntArray
from engine.attention.flashinfer_calls import DecodeWrapper, MergeState, PrefillWrapper
from engine.attention.paged_plan import Int32Array, PagedPlan
from engine.attention.shared_prefix import SharedRange, SharedRanges, at_one_level
from engine.to_device import to_device

# Of one layer, that need not be read: about what its two more kernels, the gathering and the
# joining take at 3.35 TB/s. Derived, not measured.
MIN_SAVED_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class SharedPages:
    """The beginnings that some single query tokens of a step share. A page is a KV block."""

    # A request for each beginning; its queries are those of its members.
    pages: PagedPlan
    # [pages.qo_indptr[-1]] query tokens, group by group.
    members: IntArray
    # [single query tokens] pages that are left out of each one's own.
    num_pages: IntArray


class SharedPagesPlanner:
    """Plans step after step for one backend."""

    def __init__(
        self, block_size: int, unit_tokens: int, token_bytes: int, min_saved_bytes: int
    ) -> None:
        """`unit_tokens`: of a fixed cut of KV, a multiple of the block size; `token_bytes`: of a
        token in one layer.
        """
        self._block_size = block_size
        self._min_saved_tokens = min_saved_bytes / token_bytes
        self._finder = SharedRanges(block_size, unit_tokens)
        self._found: tuple[SharedRange, ...] = ()
        self._chosen: tuple[SharedRange, ...] = ()

    def plan(self, batch: AttentionBatch) -> SharedPages | None:
        """None where reading apart is no slower."""
        found = self._finder.of(batch)
        if found is not self._found:
            self._found, self._chosen = found, at_one_level(found)
        saved = sum((len(shared.members) - 1) * shared.last for shared in self._chosen)
        if not self._chosen or saved < self._min_saved_tokens:
            return None
        return _shared_pages(batch, self._chosen, self._block_size)


def _shared_pages(
    batch: AttentionBatch, ranges: Sequence[SharedRange], block_size: int
) -> SharedPages:
    num_single = int(np.count_nonzero(batch.num_queries == 1))
    lengths = [shared.last // block_size for shared in ranges]
    num_pages = np.zeros(num_single, np.int64)
    for shared, length in zip(ranges, lengths, strict=True):
        num_pages[shared.members] = length
    tables = [
        batch.block_tables[shared.members[0], :length]
        for shared, length in zip(ranges, lengths, strict=True)
    ]
    pages = PagedPlan(
        qo_indptr=_ends([len(shared.members) for shared in ranges]),
        indptr=_ends(lengths),
        indices=np.concatenate(tables).astype(np.int32),
        last_page_len=np.full(len(ranges), block_size, np.int32),
    )
    members = np.concatenate([shared.members for shared in ranges])
    return SharedPages(pages, members, num_pages)


def _ends(sizes: Sequence[int]) -> Int32Array:
    return np.cumsum([0, *sizes]).astype(np.int32)


class SharedAttention:
    """One layer's single query tokens over planned wrappers, beginnings first."""

    def __init__(self, shared: SharedPages, device: torch.device, merge: MergeState) -> None:
        self._members = to_device(shared.members, device)
        self._merge = merge

    def attend(
        self,
        prefix: PrefillWrapper,
        own: DecodeWrapper,
        rows: Tensor,
        cache: tuple[Tensor, Tensor],
    ) -> Tensor:
        """[single query tokens, num_heads, head_dim] in the type of the rows."""
        members = self._members
        over_prefix = prefix.run_return_lse(rows.index_select(0, members), cache)
        out, weights = own.run_return_lse(rows, cache)
        over_own = out.index_select(0, members), weights.index_select(0, members)
        joined, _ = self._merge(*over_prefix, *over_own)
        return out.index_copy_(0, members, joined)
