"""Slices of blocks: what moves between workers that divide the KV heads among their ranks.

A block is cut into equal slices, each some neighbouring heads, and a rank's pool holds a range of
them of every block, side by side. To the transports such a pool is one of `num` times as many
blocks, each as large as a slice: these are its *units*, and a transport knows nothing else. A
worker that is not divided, in a cluster that cuts no blocks, has units that are its blocks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kvtransfer.errors import LayoutMismatch
from kvtransfer.protocol import BlockMoves, Ids
from scheduling.kv_export import KvExport

_Ids: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PoolSlices:
    """What one rank's pool holds of every block: the slices [first, first + num) of `total`."""

    first: int = 0
    num: int = 1
    total: int = 1

    @property
    def end(self) -> int:
        return self.first + self.num

    @classmethod
    def of_rank(cls, rank: int, num_ranks: int, num_slices: int) -> "PoolSlices":
        """Of rank `rank` in [0, num_ranks). Raises: LayoutMismatch."""
        if num_slices % num_ranks:
            raise LayoutMismatch(
                f"{num_slices} KV slices cannot be divided among {num_ranks} ranks; give all "
                f"workers of the cluster a --kv-slices that is a multiple of every "
                f"--tensor-parallel-size"
            )
        num = num_slices // num_ranks
        return cls(rank * num, num, num_slices)

    def require_heads(self, num_kv_heads: int) -> None:
        """Of this rank's pool. Raises: LayoutMismatch where they cannot be so many slices."""
        if num_kv_heads % self.num:
            raise LayoutMismatch(
                f"{num_kv_heads * self.total // self.num} KV heads cannot be cut into {self.total} "
                f"slices; lower --kv-slices of all workers of the cluster"
            )

    def units_of(self, block_ids: Ids) -> Ids:
        """The units of these blocks: a block's slices side by side, blocks in their order."""
        return block_ids if self.num == 1 else _units(block_ids, self.num, range(self.num))

    def for_units(self, values: Ids) -> Ids:
        """One value for each block, as one for each of its units."""
        return values if self.num == 1 else np.repeat(np.asarray(values, np.int64), self.num)


WHOLE = PoolSlices()


def pool_name(worker_id: str, rank: int) -> str:
    """Under which a rank exports its pool: the first by the worker's name, which has no slash."""
    return worker_id if rank == 0 else f"{worker_id}/{rank}"


def is_first_rank(name: str) -> bool:
    """Whether a name that begins with that of a pool is of rank 0."""
    return "/" not in name


def export_of_rank(export: KvExport, slices: PoolSlices) -> KvExport:
    """What the receiver of a rank's pool exports, and which slices are in it."""
    return replace(export, first_slice=slices.first, num_slices=slices.num)


def join_exports(exports: Sequence[KvExport]) -> KvExport:
    """The pools of all ranks of one worker, that of rank 0 first, as one export."""
    first, *others = exports
    return replace(first, other_ranks=tuple(others))


@dataclass(frozen=True, slots=True)
class SliceRoute:
    """From one rank of a sending worker to one of the receiving worker, by the slices of both."""

    # Of that rank alone.
    export: KvExport
    own: PoolSlices
    theirs: PoolSlices

    @property
    def shared(self) -> range:
        """Slices that both have; never none."""
        return range(max(self.own.first, self.theirs.first), min(self.own.end, self.theirs.end))

    def cut(self, moves: BlockMoves) -> BlockMoves:
        """Moves of blocks as moves of the units that both have."""
        shared = self.shared
        if self.own.num == self.theirs.num == 1:
            return moves
        own = range(shared.start - self.own.first, shared.stop - self.own.first)
        theirs = range(shared.start - self.theirs.first, shared.stop - self.theirs.first)
        return BlockMoves(
            transfer_id=moves.transfer_id,
            src_block_ids=_as_tuple(_units(moves.src_block_ids, self.own.num, own)),
            dst_block_ids=_as_tuple(_units(moves.dst_block_ids, self.theirs.num, theirs)),
            generations=_as_tuple(np.repeat(np.asarray(moves.generations), len(shared))),
            first_index=moves.first_index * len(shared),
        )


def routes_to(export: KvExport, own: PoolSlices) -> tuple[SliceRoute, ...]:
    """To every rank of a worker that has slices of ours. Raises: LayoutMismatch."""
    if not export.other_ranks and (export.first_slice, export.num_slices) == (0, own.total):
        return (SliceRoute(export, own, PoolSlices(0, own.total, own.total)),)
    return tuple(
        SliceRoute(each, own, theirs)
        for each, theirs in _checked_ranks(export, own.total)
        if theirs.first < own.end and own.first < theirs.end
    )


def _checked_ranks(export: KvExport, num_slices: int) -> Iterator[tuple[KvExport, PoolSlices]]:
    """Every rank and its slices, which must be all slices of a block, each once."""
    ranks = (replace(export, other_ranks=()), *export.other_ranks)
    known = {(each.block_bytes, each.incarnation, each.num_kv_blocks) for each in ranks}
    names = {each.worker_id for each in ranks}
    is_own = all(name.startswith(f"{export.worker_id}/") for name in names - {export.worker_id})
    if len(known) > 1 or len(names) < len(ranks) or not is_own:
        raise LayoutMismatch(f"the ranks of worker {export.worker_id} do not export one KV pool")
    end = 0
    for each in sorted(ranks, key=lambda rank: rank.first_slice):
        if each.first_slice != end or each.num_slices < 1:
            raise LayoutMismatch(
                f"the ranks of worker {export.worker_id} do not hold every slice of a KV block "
                f"once: slice {min(end, each.first_slice)} is in none of them, or in two"
            )
        end += each.num_slices
    if end != num_slices:
        raise LayoutMismatch(
            f"worker {export.worker_id} cuts KV blocks into {end} slices, this worker into "
            f"{num_slices}; give both the same --kv-slices"
        )
    for each in ranks:
        yield each, PoolSlices(each.first_slice, each.num_slices, num_slices)


def _units(block_ids: Ids, num: int, places: range) -> _Ids:
    """Units of a pool of `num` a block: of each block those at `places`."""
    first = np.asarray(block_ids, np.int64) * num
    units: _Ids = (first[:, np.newaxis] + np.arange(places.start, places.stop)).reshape(-1)
    return units


def _as_tuple(values: _Ids) -> tuple[int, ...]:
    return tuple(values.tolist())
