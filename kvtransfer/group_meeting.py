"""How the two sides of a process group find each other: over the connection that they have already.

The library wants a store that both sides reach. This one lies in no place of its own: what one side
puts into it goes to the other as a frame, so nobody else can look into it or join. What the library
connects by itself is asked for a proof before the first batch.
"""

import hmac
import secrets
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

import torch
import torch.distributed

from kvtransfer.process_group import (
    RECEIVER,
    SENDER,
    GroupFailed,
    GroupKind,
    PairGroup,
)
from kvtransfer.tcp_frames import (
    ENTRY_HEAD_BYTES,
    MEETING_SECRET_BYTES,
    Meeting,
    entry_sizes,
    pack_entry,
    read_entry,
)
from kvtransfer.tcp_stream import Patience, Stream
from runtime.clock import MonotonicClock

# For all of it: finding each other, connecting, and the proofs.
JOIN_TIMEOUT_S: Final = 15.0
# gloo says one thing on each side, NCCL one on one side.
_MAX_ENTRIES: Final = 64
_PROOF_BYTES: Final = 32


def new_meeting(max_batch_bytes: int) -> Meeting:
    """A secret that no other pair has."""
    return Meeting(max_batch_bytes, secrets.token_bytes(MEETING_SECRET_BYTES))


def receive_group(
    kind: GroupKind, meeting: Meeting, stream: Stream, timeout_s: float = JOIN_TIMEOUT_S
) -> PairGroup:
    """The receiver's side of a meeting. Raises: ConnectionLost, FrameError, in that time."""
    return _meet(kind, meeting, stream, RECEIVER, timeout_s)


def send_group(
    kind: GroupKind, meeting: Meeting, stream: Stream, timeout_s: float = JOIN_TIMEOUT_S
) -> PairGroup:
    """The sender's side of a meeting. Raises: ConnectionLost, FrameError, in that time."""
    return _meet(kind, meeting, stream, SENDER, timeout_s)


def _meet(
    kind: GroupKind, meeting: Meeting, stream: Stream, rank: int, timeout_s: float
) -> PairGroup:
    clock = MonotonicClock()
    until_s = clock.now() + timeout_s

    def left_s() -> float:
        return until_s - clock.now()

    def wait_on() -> None:
        if left_s() <= 0:
            raise GroupFailed("the other side does not join in time")

    store = MeetingStore(stream, wait_on)
    group = kind.join(store, rank, stream.own_host, timeout_s)
    try:
        store.finish()
        proofs = _Proofs(group, meeting, stream, kind.device)
        # In turns: NCCL does not send and receive at once.
        if rank == SENDER:
            proofs.give(SENDER, left_s())
            proofs.take(RECEIVER, left_s())
        else:
            proofs.take(SENDER, left_s())
            proofs.give(RECEIVER, left_s())
    except BaseException:
        group.close()
        raise
    return group


class MeetingStore(torch.distributed.Store):
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

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:  # type: ignore[override]
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
        if stream is None or self._has_heard_all or self._num_heard >= _MAX_ENTRIES:
            raise GroupFailed("the other side has said other things at the meeting")
        self._num_heard += 1
        num_key_bytes, num_bytes = entry_sizes(stream.receive(ENTRY_HEAD_BYTES, self._patience))
        key, value = read_entry(num_key_bytes, stream.receive(num_bytes, self._patience))
        if key:
            self._value_by_key[key] = value
        else:
            self._has_heard_all = True


class _Proofs:
    """Who connected to a port that the library opened is the one on the other end of the stream."""

    def __init__(self, group: PairGroup, meeting: Meeting, stream: Stream, device: str) -> None:
        self._group = group
        self._secret = meeting.secret
        self._stream = stream
        self._device = torch.device(device)

    def give(self, rank: int, timeout_s: float) -> None:
        """Raises: GroupFailed."""
        proof = torch.tensor(list(self._proof_of(rank)), dtype=torch.uint8, device=self._device)
        self._group.begin_send(proof).wait(timeout_s, self._stream.has_ended)

    def take(self, rank: int, timeout_s: float) -> None:
        """Raises: GroupFailed."""
        proof = torch.zeros(_PROOF_BYTES, dtype=torch.uint8, device=self._device)
        self._group.begin_receive(proof).wait(timeout_s, self._stream.has_ended)
        if not hmac.compare_digest(bytes(proof.tolist()), self._proof_of(rank)):
            raise GroupFailed("somebody else has joined the group")

    def _proof_of(self, rank: int) -> bytes:
        return hmac.digest(self._secret, f"kv group, rank {rank}".encode(), "sha256")
