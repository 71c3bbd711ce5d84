"""How the two sides of a process group find each other: over the connection that they have already.

What the library connects by itself is asked for a proof before the first batch.
"""

import hmac
import secrets
from typing import Final

import torch

from kvtransfer.process_group import (
    RECEIVER,
    SENDER,
    GroupFailed,
    GroupKind,
    PairGroup,
)
from kvtransfer.tcp_frames import MEETING_SECRET_BYTES, Meeting
from kvtransfer.tcp_stream import Stream
from runtime.clock import MonotonicClock

# For all of it: finding each other, connecting, and the proofs.
JOIN_TIMEOUT_S: Final = 15.0
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
    # A build of torch without process groups has no stores either.
    from kvtransfer.group_store import MeetingStore

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
