"""What senders announce before they write: one slot for each, and who may still be writing."""

import numpy as np
import numpy.typing as npt

from kvtransfer.checksum import sender_key
from kvtransfer.layout import SLOT_CLAIM, SLOT_SENDER_KEY, Words, new_slots

_LOW_HALF = np.uint64(0xFFFFFFFF)
_HALF_BITS = np.uint64(32)


def pack_claim(first_block: int, end_block: int) -> int:
    """Blocks [first_block, end_block) as the word by which a sender announces a write."""
    return first_block << 32 | end_block


class Claims:
    """The slots of one door. Read by the pool's owner; each row is written by its sender."""

    def __init__(self, slots: Words) -> None:
        # [max_senders, 8]
        self.slots = slots

    @classmethod
    def private(cls, max_senders: int) -> "Claims":
        """Slots that only this process sees."""
        return cls(new_slots(max_senders))

    def begin(self, slot: int, sender_id: str) -> None:
        """A sender takes the slot; nobody stands behind it any more."""
        self.slots[slot, SLOT_CLAIM] = 0
        self.slots[slot, SLOT_SENDER_KEY] = sender_key(sender_id)

    def clear(self, slot: int) -> None:
        """Drop a claim. The caller has made sure that no writer stands behind it."""
        self.slots[slot, SLOT_CLAIM] = 0

    def writing_slots(self, block_ids: npt.NDArray[np.int64]) -> list[int]:
        """Slots whose sender announced a write that may touch these blocks."""
        claims = self.slots[:, SLOT_CLAIM]
        busy = np.flatnonzero(claims)
        if not block_ids.size or not busy.size:
            return []
        held = claims[busy][:, np.newaxis]
        touched = block_ids.astype(np.uint64)[np.newaxis, :]
        is_hit = ((held >> _HALF_BITS) <= touched) & (touched < (held & _LOW_HALF))
        return [int(slot) for slot in busy[is_hit.any(axis=1)]]

    def slots_of(self, sender_id: str) -> list[int]:
        """Slots that this sender holds, or held when it died, with a write announced."""
        is_its_own = self.slots[:, SLOT_SENDER_KEY] == np.uint64(sender_key(sender_id))
        return [int(slot) for slot in np.flatnonzero(is_its_own & (self.slots[:, SLOT_CLAIM] != 0))]
