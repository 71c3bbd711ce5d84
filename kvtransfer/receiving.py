"""The receiver's half of a pool: grants, arrivals and revocation. Moves no bytes."""

import numpy as np
import numpy.typing as npt

from kvtransfer.batches import ChecksumsOf
from kvtransfer.errors import StaleGeneration
from kvtransfer.layout import NO_GRANT, PoolViews, block_index
from kvtransfer.ordering import full_fence
from kvtransfer.protocol import Arrival, Ids


class ReceivedBlocks:
    """Grants blocks in the shared tables and reads back what became of them."""

    def __init__(self, views: PoolViews, checksums_of: ChecksumsOf) -> None:
        self._views = views
        self._num_blocks = len(views.expected)
        # Of the pool's blocks as they are now.
        self._checksums_of = checksums_of
        # Kept here, not in shared memory: no sender may talk the receiver out of them.
        # Per block: the highest generation ever granted, and the last one whose checksum was
        # found right or wrong.
        self._highest = np.zeros(self._num_blocks, np.uint64)
        self._verified = np.zeros(self._num_blocks, np.uint64)
        self._damaged = np.zeros(self._num_blocks, np.uint64)

    def expect(self, block_ids: Ids, generations: Ids) -> None:
        """See `KvReceiver.expect`. Grants all of them or none."""
        ids, tags = self._index(block_ids), _tags(generations)
        _require_one_length(ids, tags)
        is_repeated = (self._views.expected[ids] == tags) & (tags != NO_GRANT)
        is_refused = (tags <= self._highest[ids]) & ~is_repeated
        if is_refused.any():
            at = int(is_refused.argmax())
            current = int(self._views.expected[ids[at]])
            raise StaleGeneration(int(ids[at]), int(tags[at]), current or None)
        self._highest[ids] = tags
        self._views.expected[ids] = tags

    def poll(self, block_ids: Ids, generations: Ids) -> Arrival:
        """See `KvReceiver.poll`."""
        ids, tags = self._index(block_ids), _tags(generations)
        _require_one_length(ids, tags)
        is_current = (self._views.expected[ids] == tags) & (tags != NO_GRANT)
        has_arrived = (self._views.arrived[ids] == tags) & is_current
        # The headers were read; only now the checksums and bytes that they vouch for.
        full_fence()
        is_damaged = has_arrived & self._find_damage(ids, tags, has_arrived)
        num_arrived = int(np.count_nonzero(has_arrived & ~is_damaged))
        return Arrival(
            num_arrived=num_arrived,
            is_complete=num_arrived == len(ids),
            damaged_block_ids=tuple(ids[is_damaged].tolist()),
            stale_block_ids=tuple(ids[~is_current].tolist()),
        )

    def revoke(self, block_ids: Ids) -> None:
        """See `KvReceiver.revoke`."""
        self._views.expected[self._index(block_ids)] = NO_GRANT
        # A writer announces, fences, then reads `expected`; `Claims.writing_slots` reads
        # announcements after this fence. So either it sees the revocation or we see the writer.
        full_fence()

    def _find_damage(
        self,
        ids: npt.NDArray[np.int64],
        tags: npt.NDArray[np.uint64],
        has_arrived: npt.NDArray[np.bool_],
    ) -> npt.NDArray[np.bool_]:
        has_checksum = has_arrived & (self._views.checksum_of[ids] == tags)
        is_known = (self._verified[ids] == tags) | (self._damaged[ids] == tags)
        new = np.flatnonzero(has_checksum & ~is_known)
        if new.size:
            blocks = ids[new]
            is_right = self._checksums_of(blocks.tolist()) == self._views.checksum[blocks]
            self._verified[blocks[is_right]] = tags[new[is_right]]
            self._damaged[blocks[~is_right]] = tags[new[~is_right]]
        is_damaged: npt.NDArray[np.bool_] = self._damaged[ids] == tags
        return is_damaged

    def _index(self, block_ids: Ids) -> npt.NDArray[np.int64]:
        return block_index(block_ids, self._num_blocks)


def _tags(generations: Ids) -> npt.NDArray[np.uint64]:
    tags = np.asarray(generations, dtype=np.int64)
    if tags.size and tags.min() < 1:
        raise ValueError(f"generation {tags.min()} is below 1")
    return tags.astype(np.uint64)


def _require_one_length(ids: npt.NDArray[np.int64], tags: npt.NDArray[np.uint64]) -> None:
    if ids.shape != tags.shape:
        raise ValueError(f"{ids.size} blocks and {tags.size} generations")
