"""Process groups of torch for one sender and one receiver each, outside of any global group.

Made, used and ended by the thread of that pair, so that a peer that hangs holds up nobody else.
Importing this imports torch.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
import torch.distributed as dist

from kvtransfer import nccl_settings
from kvtransfer.errors import ExportUnavailable
from kvtransfer.staging import Staging
from kvtransfer.tcp_stream import ConnectionLost
from runtime.clock import MonotonicClock

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

# Ranks within a pair.
RECEIVER, SENDER = 0, 1
# The library's waits count milliseconds, and 0 means for ever.
_LEAST_WAIT_S: Final = 0.001
# A store that waits gives up by itself by then.
_LAST_WORDS_S: Final = 0.5
# Between two looks at a transfer: short beside one of 16 MiB.
_PAUSE_S: Final = 50e-6
# Tags repeat after so many batches; two are on their way at most.
_NUM_TAGS: Final = 1 << 16
# After this NCCL takes a transfer for failed; every wait of ours is shorter.
_OPERATION_TIMEOUT_S: Final = 600.0
# To take a group of NCCL apart, which is a matter of milliseconds.
END_GROUP_S: Final = 5.0


class GroupFailed(ConnectionLost):
    """A process group was not made in time, or broke; it is never used again."""


@contextmanager
def _library_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError) as error:
        # Only the first line: the rest is a stack of the library.
        raise GroupFailed(f"{what} failed: {str(error).partition(chr(10))[0]}") from error


class PairGroup:
    """A group of two. Used by one thread."""

    def __init__(self, group: Any, own_rank: int, store: "Store", *, is_polled: bool) -> None:
        """`is_polled`: what moves can be asked whether it is done."""
        # None once closed: the library ends a group when nothing refers to it.
        self._group = group
        # Kept: the library may ask it as long as the group lives.
        self._store = store
        self._is_polled = is_polled
        self._has_ended = True
        self._peer = SENDER if own_rank == RECEIVER else RECEIVER
        self._num_sent = self._num_received = 0

    def begin_send(self, room: torch.Tensor) -> "Moving":
        """Send these bytes, which stay as they are until the peer says that it has them."""
        self._num_sent += 1
        with _library_errors("sending"):
            work = self._group.send([room], self._peer, self._num_sent % _NUM_TAGS)
        return Moving(work, room, self._is_polled)

    def begin_receive(self, room: torch.Tensor) -> "Moving":
        """Receive what the peer sends next, exactly so many bytes."""
        self._num_received += 1
        with _library_errors("receiving"):
            work = self._group.recv([room], self._peer, self._num_received % _NUM_TAGS)
        return Moving(work, room, self._is_polled)

    def close(self, timeout_s: float = END_GROUP_S) -> bool:
        """Break off what is under way and let go of connections and threads. Twice is fine.

        False where the library has not ended it in that time; what moves may then go on.
        """
        held, self._group = [self._group], None
        if held[0] is None:
            return self._has_ended
        if not self._is_polled:
            # Ends with its last reference.
            with _quiet():
                held.pop().abort()
            return True
        self._has_ended = _end(held, timeout_s)
        return self._has_ended


class Moving:
    """Bytes under way."""

    def __init__(self, work: Any, room: torch.Tensor, is_polled: bool) -> None:
        self._work = work
        # Kept: the library writes into it, or reads it, until it is done or the group ended.
        self._room = room
        self._is_polled = is_polled

    def wait(self, timeout_s: float, has_ended: Callable[[], bool]) -> None:
        """Return when all bytes have moved. Raises: GroupFailed; then the group is broken.

        `has_ended`: the peer is gone. Gloo finds that out by itself, and cannot be asked meanwhile;
        NCCL may wait for a dead peer for ever.
        """
        until_s = MonotonicClock().now() + timeout_s
        with _library_errors("a transfer"):
            if self._is_polled:
                self._wait_until_done(until_s, has_ended)
            left_s = max(until_s - MonotonicClock().now(), _LEAST_WAIT_S)
            if not self._work.wait(timedelta(seconds=left_s)):
                raise GroupFailed("a transfer was given up")

    def hold_stream(self) -> None:
        """What the current stream is given from now on runs after these bytes have moved."""
        if self._is_polled:
            self._work.synchronize()

    def _wait_until_done(self, until_s: float, has_ended: Callable[[], bool]) -> None:
        pause, clock = threading.Event(), MonotonicClock()
        while not self._work.is_completed():
            if has_ended():
                raise GroupFailed("the peer left in the middle of a transfer")
            if clock.now() >= until_s:
                raise GroupFailed("a transfer took too long")
            pause.wait(_PAUSE_S)


class GroupKind(Protocol):
    """A backend of torch.distributed."""

    @property
    def name(self) -> str: ...

    @property
    def device(self) -> str:
        """Where what it moves must lie."""
        ...

    @property
    def takes_device_pools(self) -> bool:
        """Whether pools may lie there, too; those of the host always may."""
        ...

    def problem(self) -> str | None:
        """What is missing for it to work here."""
        ...

    def join(self, store: "Store", rank: int, own_host: str, timeout_s: float) -> PairGroup:
        """Meet the other side in the store. Raises: GroupFailed, after that time at the latest."""
        ...

    def new_staging(self, max_batch_bytes: int) -> Staging:
        """Rooms where what it moves must lie."""
        ...


def require(kind: GroupKind) -> None:
    """Raises: ExportUnavailable where something is missing."""
    problem = kind.problem()
    if problem is not None:
        raise ExportUnavailable(
            f"the transport {kind.name} cannot be used: {problem}",
            f"take {kind.name} out of transports",
        )


class Gloo:
    """Host memory over TCP sockets of its own; one thread a group."""

    name: Final = "gloo"
    device: Final = "cpu"
    takes_device_pools: Final = False

    def problem(self) -> str | None:
        if dist.is_available() and dist.is_gloo_available():
            return None
        return "this build of torch has no gloo"

    def new_staging(self, max_batch_bytes: int) -> Staging:
        """See `GroupKind.new_staging`."""
        return Staging(max_batch_bytes, self.device)

    def join(self, store: "Store", rank: int, own_host: str, timeout_s: float) -> PairGroup:
        """See `GroupKind.join`."""
        api: Any = dist.ProcessGroupGloo
        with _library_errors("meeting the other side"):
            options = api._Options()
            options._timeout = timedelta(seconds=timeout_s)
            # The address by which the two talk already, not what the host's name resolves to.
            options._devices = [api.create_device(hostname=own_host, lazy_init=False)]
            # Its threads are for collectives; the device has one of its own for send and recv.
            options._threads = 0
            return PairGroup(api(store, rank, 2, options), rank, store, is_polled=False)


class Nccl:
    """Device memory, by whatever way NCCL finds. The process was prepared (`nccl_settings.py`)."""

    name: Final = "nccl"
    takes_device_pools: Final = True

    def __init__(self, device: str = "cuda:0", group_class: Any = None) -> None:
        """`device`: with its index; threads do not inherit which one is the current one."""
        self.device = device
        # In place of the library's, for tests.
        self._group_class = group_class

    def problem(self) -> str | None:
        if self._group_class is not None:
            return None
        if not torch.cuda.is_available():
            return "it needs a CUDA device"
        if not (dist.is_available() and dist.is_nccl_available()):
            return "this build of torch has no NCCL"
        missing = nccl_settings.missing()
        if missing:
            # Else the library would end the whole process when a peer is lost.
            return f"this process was started without {' '.join(missing)}"
        return None

    def new_staging(self, max_batch_bytes: int) -> Staging:
        """See `GroupKind.new_staging`."""
        return Staging(max_batch_bytes, self.device)

    def join(self, store: "Store", rank: int, own_host: str, timeout_s: float) -> PairGroup:
        """See `GroupKind.join`.

        Connecting has no limit of the library's own, and whether `abort` ends it is up to its
        version: it happens on a thread that is left behind when the time is over. Such a thread
        keeps what the library took for it until the process ends.
        """
        api: Any = self._group_class or dist.__dict__["ProcessGroupNCCL"]
        made: list[Any] = []

        def connect() -> None:
            options = api.Options()
            # Of transfers: above every deadline here, so that the library calls none late.
            options._timeout = timedelta(seconds=_OPERATION_TIMEOUT_S)
            made.append(api(store, rank, 2, options))
            # One communicator for the pair, made now and not at the first batch.
            made[0].eager_connect_single_device(torch.device(self.device))

        with _library_errors("meeting the other side"):
            try:
                _in_time(connect, timeout_s + _LAST_WORDS_S)
            except BaseException:
                # It may wait for the one that connects.
                _end(made, 0.0)
                raise
            return PairGroup(made[0], rank, store, is_polled=True)


def _in_time(act: Callable[[], None], timeout_s: float) -> None:
    """Run it on a thread of its own. Raises: what it does; GroupFailed when the time is over."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="kv-group-connect", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if thread.is_alive():
        raise GroupFailed(f"the library has not connected in {timeout_s:.3g} s")
    if errors:
        raise errors[0]


def _end(held: list[Any], timeout_s: float) -> bool:
    """Abort the groups of a list and let go of them; whether that was over in time.

    On a thread of its own. NCCL ends kernels that wait for the peer, and may wait without a bound
    for its own threads, in `abort` as with the last reference, which is not the caller's for that.
    """
    groups, held[:] = list(held), []

    def run() -> None:
        while groups:
            with _quiet():
                groups.pop().abort()

    thread = threading.Thread(target=run, name="kv-group-end", daemon=True)
    thread.start()
    thread.join(timeout_s)
    return not thread.is_alive()


@contextmanager
def _quiet() -> Iterator[None]:
    """For the end of a group that may be broken already."""
    try:
        yield
    except RuntimeError:
        return
