"""Whether the kernel may read block bytes where they lie, and which it still reads. No socket here.

Each send without a copy that took any bytes has a number, counted from 0 on its connection. Once
nothing in this machine reads its memory any more, the number comes back through the error queue of
the socket, as a range with others and in any order, and says whether the kernel copied after all.
Source: Documentation/networking/msg_zerocopy.rst of Linux.
"""

import enum
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

# Of one send. A user without CAP_IPC_LOCK may have 8 MiB locked by default, all sends together.
MAX_SEND_BYTES: Final = 1 << 20
# Below, a copy costs no more than the bookkeeping.
MIN_SEND_BYTES: Final = 32 << 10
# Sent and not released; the kernel's own limit is lower by default.
MAX_PENDING_SENDS: Final = 1024
# IOV_MAX of Linux.
MAX_BUFFERS: Final = 1024

# <linux/errqueue.h>: errno, origin, type, code, info, data.
_EXTENDED_ERROR = struct.Struct("=IBBBxII")
_ORIGIN_ZEROCOPY: Final = 5
_CODE_COPIED: Final = 1
# Level and type of the control message that has it: IP_RECVERR, IPV6_RECVERR.
_CARRIERS: Final = ((0, 11), (41, 25))
_NUM_NUMBERS: Final = 1 << 32


class ZeroCopy(enum.Enum):
    """When the kernel may read block bytes in place."""

    NEVER = enum.auto()
    # Where one send has shown that it does so.
    AUTO = enum.auto()
    # Also where it copies all the same, which costs more than a plain send, and few bytes: for
    # tests.
    INSIST = enum.auto()


@dataclass(frozen=True, slots=True)
class Released:
    """Sends [first, last], both included, modulo 2**32: nobody reads their memory any more."""

    first: int
    last: int
    # The kernel copied at least a part of them.
    is_copied: bool


def read_released(level: int, kind: int, data: bytes) -> Released | None:
    """What one control message of the error queue says; None where it is about anything else."""
    if (level, kind) not in _CARRIERS or len(data) < _EXTENDED_ERROR.size:
        return None
    errno, origin, _, code, info, last = _EXTENDED_ERROR.unpack_from(data)
    if origin != _ORIGIN_ZEROCOPY or errno:
        return None
    return Released(info, last, bool(code & _CODE_COPIED))


def cut_sends(
    buffers: Sequence[memoryview], max_bytes: int = MAX_SEND_BYTES
) -> Iterator[list[memoryview]]:
    """The same bytes in the same order, as buffers of at most `max_bytes` for each send."""
    piece: list[memoryview] = []
    room = max_bytes
    for buffer in buffers:
        while len(buffer) > room:
            yield [*piece, buffer[:room]]
            buffer, piece, room = buffer[room:], [], max_bytes
        piece.append(buffer)
        room -= len(buffer)
        if not room or len(piece) == MAX_BUFFERS:
            yield piece
            piece, room = [], max_bytes
    if piece:
        yield piece


class PinnedSends:
    """The sends of one connection whose memory the kernel may still read; whether to make more."""

    def __init__(self, use: ZeroCopy, num_sent: int = 0) -> None:
        self._use = use
        self._num_sent = num_sent
        # Half-open ranges of numbers that did not come back, ascending, with gaps between them.
        self._pending: list[tuple[int, int]] = []
        self._num_pending = 0
        self._has_worked = False
        # Why this connection makes no more of them; None while it does.
        self.problem: str | None = "not wanted" if use is ZeroCopy.NEVER else None

    @property
    def num_pending(self) -> int:
        """Sends whose memory may still be read."""
        return self._num_pending

    @property
    def has_worked(self) -> bool:
        """The kernel has read in place, and went on to."""
        return self._has_worked and self.problem is None

    def may_send(self, num_bytes: int) -> bool:
        """Whether the next so many bytes should go without a copy.

        Until the kernel has shown on one send that it does so, there is only that one: what others
        would cost in vain is not paid.
        """
        if self.problem is not None or not num_bytes or self._num_pending >= MAX_PENDING_SENDS:
            return False
        if self._use is ZeroCopy.INSIST:
            return True
        return num_bytes >= MIN_SEND_BYTES and (self._has_worked or not self._num_pending)

    def note_sent(self) -> None:
        """The kernel took some bytes of a send."""
        number, self._num_sent = self._num_sent, self._num_sent + 1
        self._num_pending += 1
        if self._pending and self._pending[-1][1] == number:
            self._pending[-1] = (self._pending[-1][0], number + 1)
        else:
            self._pending.append((number, number + 1))

    def note_released(self, released: Released) -> None:
        """The kernel reads these no more. What it never got changes nothing, and ends it all."""
        if not self._take_out(released):
            self.stop("it speaks of sends that were not made")
        elif not released.is_copied:
            self._has_worked = True
        elif self._use is ZeroCopy.AUTO:
            self.stop("it copies all the same")

    def stop(self, problem: str) -> None:
        """Make no more such sends on this connection; the first reason stays."""
        self.problem = self.problem or problem

    def check_invariants(self) -> None:
        """Raise AssertionError unless the ranges are ascending, apart, and as many as counted."""
        end = -1
        for first, after in self._pending:
            assert end < first < after <= self._num_sent
            end = after
        assert self._num_pending == sum(after - first for first, after in self._pending)

    def _take_out(self, released: Released) -> bool:
        if not self._pending:
            return False
        oldest = self._pending[0][0]
        first = oldest + (released.first - oldest) % _NUM_NUMBERS
        after = first + (released.last - released.first) % _NUM_NUMBERS + 1
        for at, (start, end) in enumerate(self._pending):
            if start <= first and after <= end:
                left = ((start, first), (after, end))
                self._pending[at : at + 1] = [part for part in left if part[0] < part[1]]
                self._num_pending -= after - first
                return True
        return False
