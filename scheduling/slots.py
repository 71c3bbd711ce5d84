"""Slot numbers of the engine's batch: small integers, lowest first, one live sequence each."""

import heapq


class SlotPool:
    """Hands out [0, num_slots)."""

    def __init__(self, num_slots: int) -> None:
        self._free = list(range(num_slots))
        self._num_slots = num_slots

    @property
    def num_free(self) -> int:
        """Slots that may be taken."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Slots that are taken."""
        return self._num_slots - len(self._free)

    def take(self) -> int:
        """The lowest free slot. Raises: IndexError when there is none."""
        return heapq.heappop(self._free)

    def give_back(self, slot: int) -> None:
        """A sequence left. Giving a slot back twice is our own error and raises ValueError."""
        if slot in self._free or not 0 <= slot < self._num_slots:
            raise ValueError(f"slot {slot} is not taken")
        heapq.heappush(self._free, slot)
