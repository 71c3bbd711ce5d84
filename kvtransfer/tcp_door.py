"""The receiver's side of TCP: a listening port, and a thread for every sender that was let in."""

import errno
import hmac
import secrets
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from kvtransfer.batches import TaggedBlocks
from kvtransfer.claimed_write import ClaimedWriter
from kvtransfer.claims import Claims
from kvtransfer.doors import ServedPool
from kvtransfer.errors import ExportUnavailable
from kvtransfer.layout import SLOT_CLAIM
from kvtransfer.protocol import CopyBytes
from kvtransfer.tcp_frames import TOKEN_BYTES, Hello, Welcome, pack_welcome
from kvtransfer.tcp_link import Arrivals, SocketArrivals, StagedArrivals, TcpLink
from kvtransfer.tcp_reception import Reception
from kvtransfer.tcp_stream import ConnectionLost, Patience, Stream
from runtime.clock import Clock
from runtime.logging import get_logger
from scheduling.ids import Incarnation, WorkerId
from scheduling.kv_export import KvExport

log = get_logger()

NAME: Final = "tcp"
_SET_HOST: Final = "set kv_host to an address of this machine; `ip address` lists them"
_BACKLOG: Final = 128
_JOIN_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class DoorSettings:
    """Where a door listens, under which name it is known, and its limits."""

    host: str = "127.0.0.1"
    # 0: a free one.
    port: int = 0
    # None: host.
    advertise_host: str | None = None
    max_senders: int = 128
    # From the first byte of a batch to its last; what takes longer counts as stalled.
    batch_timeout_s: float = 30.0
    # For what is said to a sender that comes in; one that does not read it has left by then.
    welcome_timeout_s: float = 5.0


# How the bytes of a sender come that connected by this stream; made on the link's thread.
MakeArrivals: TypeAlias = Callable[[Stream, ServedPool], Arrivals]


def _holds_nothing() -> None:
    """For kinds whose senders share nothing."""


@dataclass(frozen=True, slots=True)
class DoorKind:
    """Which transport a door is of."""

    transport: str
    make_arrivals: MakeArrivals
    # What takes the batches of one sender.
    make_link: type[TcpLink] = TcpLink
    # Called when the door is closed: lets go of what all its senders share.
    close: Callable[[], None] = _holds_nothing


def socket_door(copy_bytes: CopyBytes) -> DoorKind:
    """Bytes come over the connection itself."""

    def make(stream: Stream, pool: ServedPool) -> Arrivals:
        if pool.device is not None:
            return StagedArrivals(stream, pool.device, pool.layout.block_bytes)
        return SocketArrivals(stream, pool, copy_bytes)

    return DoorKind(NAME, make)


class TcpDoor:
    """See `Door`."""

    def __init__(
        self,
        pool: ServedPool,
        number: int,
        kind: DoorKind,
        settings: DoorSettings,
        clock: Clock,
    ) -> None:
        self._kind = kind
        self._pool = pool
        self._number = number
        self._settings = settings
        self._clock = clock
        self._claims = Claims.private(settings.max_senders)
        # Guards what follows; held for an instant only.
        self._lock = threading.Lock()
        self._link_by_slot: dict[int, tuple[TcpLink, threading.Thread]] = {}
        # Of senders that are gone and left a copy that is stuck: its claim stays as long.
        self._stuck_by_slot: dict[int, Arrivals] = {}
        self._is_closed = False
        listener = _listen(settings.host, settings.port)
        port = listener.getsockname()[1]
        self._token = secrets.token_bytes(TOKEN_BYTES)
        self._export = KvExport(
            transport=kind.transport,
            address=format_address(settings.advertise_host or settings.host, port),
            num_blocks=pool.layout.num_blocks,
            block_bytes=pool.layout.block_bytes,
            worker_id=WorkerId(pool.owner.worker_id),
            incarnation=Incarnation(pool.owner.incarnation),
            host="",
            token=self._token.hex(),
        )
        self._reception = Reception(listener, pool.owner.incarnation, self._admit, clock)
        self._thread = threading.Thread(
            target=self._reception.run, name=f"kv-door-{port}", daemon=True
        )
        self._thread.start()
        log.info("kv_door_open", transport=kind.transport, address=self._export.address)

    def export(self) -> KvExport:
        return self._export

    def is_writing(self, block_ids: npt.NDArray[np.int64]) -> bool:
        # Exact: a link's claim ends when nothing of its batch is written any more.
        self._look_at_stuck()
        return bool(self._claims.writing_slots(block_ids))

    def forget_sender(self, sender_id: str) -> bool:
        return not self._claims.slots_of(sender_id)

    def close(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            links = list(self._link_by_slot.values())
        self._reception.stop()
        for link, _ in links:
            link.abort()
        self._thread.join(_JOIN_TIMEOUT_S)
        for _, thread in links:
            thread.join(_JOIN_TIMEOUT_S)
        self._kind.close()

    def _admit(self, connection: socket.socket, hello: Hello) -> Welcome | None:
        owner, layout = self._pool.owner, self._pool.layout
        # Senders of another life or worker are told so; their token cannot be ours.
        if hello.worker_id != owner.worker_id:
            return Welcome.OTHER_WORKER
        if hello.incarnation != owner.incarnation:
            return Welcome.OTHER_INCARNATION
        if not hmac.compare_digest(hello.token, self._token):
            return None
        if (hello.num_blocks, hello.block_bytes) != (layout.num_blocks, layout.block_bytes):
            return Welcome.OTHER_LAYOUT
        # Nobody may have asked for its blocks since such a copy has ended.
        self._look_at_stuck()
        with self._lock:
            if self._is_closed:
                return Welcome.OTHER_WORKER
            slot = next((s for s in range(self._settings.max_senders) if self._is_free(s)), None)
            if slot is None:
                return Welcome.FULL
            self._claims.begin(slot, hello.sender_id)
            stream = Stream(connection)
            writer = ClaimedWriter(self._pool.views, self._claims.slots[slot])
            timeout_s = self._settings.batch_timeout_s
            link = self._kind.make_link(stream, self._pool, writer, timeout_s, self._clock)
            thread = threading.Thread(
                target=self._serve,
                args=(link, stream, slot, hello.sender_id),
                name=f"kv-link-{hello.sender_id}",
                daemon=True,
            )
            self._link_by_slot[slot] = (link, thread)
            try:
                thread.start()
            except RuntimeError:
                # The system gives no more threads: the others go on, this one may come again.
                del self._link_by_slot[slot]
                log.warning("kv_link_without_thread", sender_id=hello.sender_id)
                return Welcome.FULL
        return Welcome.COME_IN

    def _look_at_stuck(self) -> None:
        """Drop the claims of copies that have ended after all."""
        if not self._stuck_by_slot:
            return
        with self._lock:
            ended = [slot for slot, left in self._stuck_by_slot.items() if left.is_still()]
            arrivals = [self._stuck_by_slot.pop(slot) for slot in ended]
            for slot in ended:
                self._claims.clear(slot)
        for each in arrivals:
            try:
                each.close()
            except Exception:
                # Whoever asks goes on: a door, or the engine.
                log.exception("kv_link_not_closed")

    def _is_free(self, slot: int) -> bool:
        """Also without a sender a slot is not free where a copy on a device is stuck."""
        return slot not in self._link_by_slot and not self._claims.slots[slot, SLOT_CLAIM]

    def _serve(self, link: TcpLink, stream: Stream, slot: int, sender_id: str) -> None:
        arrivals: Arrivals | None = None
        try:
            arrivals = self._kind.make_arrivals(stream, self._pool)
            welcome = pack_welcome(Welcome.COME_IN, self._pool.owner.incarnation)
            stream.send([memoryview(welcome + arrivals.greeting())], self._welcome_patience())
            link.run(sender_id, arrivals, self._mark_door)
        except ConnectionLost as error:
            # It left before it was welcomed, or reads nothing.
            log.info("kv_sender_not_welcomed", sender_id=sender_id, problem=error.problem)
        except Exception:
            # The one place where a defect ends a link instead of going unseen.
            log.exception("kv_link_failed", sender_id=sender_id)
        finally:
            self._end_link(arrivals, stream, slot, sender_id)

    def _end_link(
        self, arrivals: Arrivals | None, stream: Stream, slot: int, sender_id: str
    ) -> None:
        """Whatever `close` raises, the slot is free for others and the sender hears of the end."""
        try:
            if arrivals is not None:
                arrivals.close()
        except Exception:
            log.exception("kv_link_not_closed", sender_id=sender_id)
        finally:
            with self._lock:
                del self._link_by_slot[slot]
                if arrivals is not None and self._claims.slots[slot, SLOT_CLAIM]:
                    self._stuck_by_slot[slot] = arrivals
            stream.reset()

    def _welcome_patience(self) -> Patience:
        until_s = self._clock.now() + self._settings.welcome_timeout_s

        def wait_on() -> None:
            if self._clock.now() >= until_s:
                raise ConnectionLost("it does not read what it is told")

        return wait_on

    def _mark_door(self, blocks: TaggedBlocks) -> None:
        self._pool.door_of[blocks.dst] = self._number


def format_address(host: str, port: int) -> str:
    """host:port, with brackets where the host has colons of its own."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _why_not(host: str, port: int, error: OSError) -> tuple[str, str]:
    """What is wrong with an address, and what to do."""
    where = format_address(host, port)
    if isinstance(error, socket.gaierror):
        return f"{host!r} is no address or name that this machine knows", _SET_HOST
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine", _SET_HOST
    if error.errno == errno.EADDRINUSE:
        return (
            f"another process listens on {where} already",
            "end it, or set kv_port to a port that is free (0: the system chooses)",
        )
    if error.errno == errno.EACCES:
        return f"this user may not listen on {where}", "set kv_port to 1024 or more"
    problem = f"{where} cannot be listened on: {error.strerror or error}"
    return problem, "set kv_host and kv_port to an address of this machine that is free"


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind)
        try:
            # A restarted worker takes its port over at once.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise ExportUnavailable(*_why_not(host, port, error)) from error
    return listener
