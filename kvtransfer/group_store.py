"""A store of torch between two sides that have a connection: what one puts in, the other can get.

It lies in no place of its own: every entry goes to the other side as a frame, so nobody else can
look into it or put something in. Importing this imports torch.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from kvtransfer.process_group import GroupFailed
from kvtransfer.tcp_frames import ENTRY_HEAD_BYTES, entry_sizes, pack_entry, read_entry
from kvtransfer.tcp_stream import Patience, Stream

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store
else:
    from torch.distributed import Store

# gloo says one thing on each side, NCCL one on one side.
MAX_ENTRIES: Final = 64


class MeetingStore(Store):
    """What the library puts in on one side can be had on the other. Used by one thread.

    Once the meeting is over it answers from what it has, to any thread, and never waits.
    """

    def __init__(self, stream: Stream, patience: Patience) -> None:
        super().__init__()
        # None once it is over.
        self._stream: Stream | None = stream
        self._patience = patience
        self._value_by_key: dict[str, bytes] = {}
        self._has_heard_all = False
        self._num_heard = 0

    def set(self, key: str, value: str | bytes) -> None:
        data = value.encode() if isinstance(value, str) else bytes(value)
        self._value_by_key[key] = data
        if self._stream is not None:
            self._stream.send([memoryview(pack_entry(key, data))], self._patience)

    def get(self, key: str) -> bytes:
        """Waits for it. Raises: ConnectionLost, FrameError."""
        while key not in self._value_by_key:
            self._hear_one()
        return self._value_by_key[key]

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """The meeting has a time of its own. Raises: ConnectionLost, FrameError."""
        for key in keys:
            self.get(key)

    def check(self, keys: Sequence[str]) -> bool:
        stream = self._stream
        while stream is not None and not self._has_heard_all and stream.has_news():
            self._hear_one()
        return all(key in self._value_by_key for key in keys)

    def delete_key(self, key: str) -> bool:
        return self._value_by_key.pop(key, None) is not None

    def finish(self) -> None:
        """This side has joined: wait until the other has. Raises: ConnectionLost, FrameError."""
        assert self._stream is not None, "a meeting is over once"
        self._stream.send([memoryview(pack_entry("", b""))], self._patience)
        while not self._has_heard_all:
            self._hear_one()
        self._stream = None

    def _hear_one(self) -> None:
        stream = self._stream
        if stream is None or self._has_heard_all or self._num_heard >= MAX_ENTRIES:
            raise GroupFailed("the other side has said other things at the meeting")
        self._num_heard += 1
        num_key_bytes, num_bytes = entry_sizes(stream.receive(ENTRY_HEAD_BYTES, self._patience))
        key, value = read_entry(num_key_bytes, stream.receive(num_bytes, self._patience))
        if key:
            self._value_by_key[key] = value
        else:
            self._has_heard_all = True
