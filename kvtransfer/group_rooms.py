"""A process group of two and the rooms that it sends from or receives into; they end together.

Importing this imports torch.
"""

from collections import deque
from dataclasses import dataclass, field

import torch

from kvtransfer.device_writing import keep
from kvtransfer.errors import CopyStuck
from kvtransfer.process_group import END_GROUP_S, Moving, PairGroup
from kvtransfer.staging import NUM_ROOMS, Staging
from runtime.logging import get_logger

log = get_logger()


@dataclass(slots=True)
class GroupRooms:
    """Used by one thread."""

    group: PairGroup
    staging: Staging
    # What was begun last; what came before is over.
    _moving: deque[Moving] = field(default_factory=lambda: deque(maxlen=NUM_ROOMS))

    def begin_send(self, room: torch.Tensor) -> Moving:
        """See `PairGroup.begin_send`."""
        self._moving.append(self.group.begin_send(room))
        return self._moving[-1]

    def begin_receive(self, room: torch.Tensor) -> Moving:
        """See `PairGroup.begin_receive`."""
        self._moving.append(self.group.begin_receive(room))
        return self._moving[-1]

    def close(self, timeout_s: float = END_GROUP_S) -> None:
        """End the group, and let go of the rooms once nothing moves in or out of them any more.

        Twice is fine. Rooms of what does not end stay with the process: torch would give their
        memory to somebody else, and it may still be written.
        """
        has_ended = self.group.close(timeout_s)
        try:
            with self.staging.stream():
                for moving in self._moving:
                    moving.hold_stream()
            self.staging.wait_until_idle("of a group that is over")
        except (CopyStuck, RuntimeError) as error:
            log.error("kv_group_not_ended", error=str(error))
            has_ended = False
        if not has_ended:
            keep(self)
            return
        self._moving.clear()
        self.staging.close()
