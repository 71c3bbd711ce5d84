"""The order of a safe write into a granted pool: announce, check, fill, check again, publish."""

from collections.abc import Callable

import numpy as np

from kvtransfer.batches import TaggedBlocks
from kvtransfer.claims import pack_claim
from kvtransfer.errors import CopyStuck, StaleGeneration
from kvtransfer.layout import SLOT_CLAIM, PoolViews, Words
from kvtransfer.ordering import full_fence


class ClaimedWriter:
    """Writes granted blocks of one pool, under one slot that no one else uses."""

    def __init__(self, views: PoolViews, slot: Words) -> None:
        self._views = views
        # [8]: one row of the slots.
        self._slot = slot

    def write(self, blocks: TaggedBlocks, fill: Callable[[], None]) -> None:
        """Have `fill` write the bytes, and publish them if the grant still holds afterwards.

        Raises: StaleGeneration, before `fill` is called or after it; whatever `fill` raises.
        After CopyStuck the claim stays, until `release`: something may write meanwhile.
        """
        is_over = True
        # One word announces the span from the lowest to the highest block. It may cover blocks
        # that are not ours: their quarantine lasts a moment longer, which is harmless.
        self._slot[SLOT_CLAIM] = pack_claim(int(blocks.dst.min()), int(blocks.dst.max()) + 1)
        try:
            # Announced before the grant is read: the other half of `ReceivedBlocks.revoke`.
            full_fence()
            self._require_granted(blocks)
            fill()
            # The bytes are visible before any header that vouches for them.
            full_fence()
            self._require_granted(blocks)
            sampled = blocks.dst[blocks.sampled]
            self._views.checksum[sampled] = blocks.checksums
            self._views.checksum_of[sampled] = blocks.tags[blocks.sampled]
            full_fence()
            self._views.arrived[blocks.dst] = blocks.tags
        except CopyStuck:
            is_over = False
            raise
        finally:
            if is_over:
                self.release()

    def release(self) -> None:
        """Drop the claim that CopyStuck has left: its copy has ended after all."""
        full_fence()
        self._slot[SLOT_CLAIM] = np.uint64(0)

    def _require_granted(self, blocks: TaggedBlocks) -> None:
        is_stale = self._views.expected[blocks.dst] != blocks.tags
        if is_stale.any():
            at = int(is_stale.argmax())
            current = int(self._views.expected[blocks.dst[at]])
            raise StaleGeneration(int(blocks.dst[at]), int(blocks.tags[at]), current or None)
