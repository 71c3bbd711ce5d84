"""Where the two sides of a process group find each other: a store in the receiver's process."""

import secrets
import socket
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import torch.distributed

from kvtransfer.process_group import (
    RECEIVER,
    SENDER,
    GroupFailed,
    GroupKind,
    PairGroup,
)
from kvtransfer.tcp_frames import MEETING_NAME_BYTES, Meeting

if TYPE_CHECKING:
    from torch._C._distributed_c10d import TCPStore

# Its names are there, but not declared.
_api: Final[Any] = torch.distributed
# For all of it: reaching the store, finding each other, connecting.
JOIN_TIMEOUT_S: Final = 15.0
# A store keeps what it is told; after so many meetings a new one takes over.
_MEETINGS_PER_STORE: Final = 1000


class MeetingPlace:
    """The stores of one door, one for each address that senders come by. Used by its links."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_closed = False
        # By address: the store, and how many meetings it has seen.
        self._stores: dict[str, tuple[TCPStore, int]] = {}

    def store_on(self, host: str) -> "TCPStore":
        """The store that senders reach who came by this address; lives as long as it is held.

        Raises: GroupFailed.
        """
        with self._lock:
            if self._is_closed:
                raise GroupFailed("the door is closed")
            store, num_meetings = self._stores.get(host, (None, 0))
            if store is None or num_meetings >= _MEETINGS_PER_STORE:
                store, num_meetings = _new_store(host), 0
            self._stores[host] = (store, num_meetings + 1)
            return store

    def close(self) -> None:
        """Let go of the stores. Twice is fine."""
        with self._lock:
            self._is_closed = True
            self._stores.clear()


def new_meeting(store: "TCPStore", max_batch_bytes: int) -> Meeting:
    """A name that no other pair has."""
    return Meeting(store.port, max_batch_bytes, secrets.token_bytes(MEETING_NAME_BYTES))


def receive_group(kind: GroupKind, meeting: Meeting, own_host: str) -> PairGroup:
    """The receiver's side of a meeting. Raises: GroupFailed."""
    return _join(kind, meeting, own_host, own_host, RECEIVER)


def send_group(kind: GroupKind, meeting: Meeting, own_host: str, peer_host: str) -> PairGroup:
    """The sender's side of a meeting. Raises: GroupFailed."""
    return _join(kind, meeting, own_host, peer_host, SENDER)


def _join(
    kind: GroupKind, meeting: Meeting, own_host: str, store_host: str, rank: int
) -> PairGroup:
    timeout = timedelta(seconds=JOIN_TIMEOUT_S)
    try:
        # A connection of its own: who waits for a key holds up all others on the same one.
        client = _api.TCPStore(
            store_host, meeting.store_port, None, False, timeout, wait_for_workers=False
        )
    except RuntimeError as error:
        problem = str(error).partition("\n")[0]
        raise GroupFailed(f"no way to the store: {problem}") from error
    store = _api.PrefixStore(meeting.name.hex(), client)
    return kind.join(store, rank, own_host, JOIN_TIMEOUT_S)


def _new_store(host: str) -> "TCPStore":
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        # On this address only: left to itself, a store listens on all.
        listener = socket.socket(family, kind)
        listener.bind(address)
        listener.listen()
        port = listener.getsockname()[1]
        store: TCPStore = _api.TCPStore(
            host,
            port,
            None,
            True,
            timedelta(seconds=JOIN_TIMEOUT_S),
            wait_for_workers=False,
            # The store closes it.
            master_listen_fd=listener.detach(),
        )
        return store
    except (OSError, RuntimeError) as error:
        problem = str(error).partition("\n")[0]
        raise GroupFailed(f"no store on {host}: {problem}") from error
