"""Dials a receiver and says hello; turns what it hears into an error of this package."""

import socket
from typing import Final

from kvtransfer.errors import (
    ExportUnavailable,
    LayoutMismatch,
    PeerGone,
    StaleIncarnation,
    TransferError,
    WrongVersion,
)
from kvtransfer.tcp_frames import (
    TOKEN_BYTES,
    VERSION,
    WELCOME_BYTES,
    FrameError,
    Hello,
    OtherVersion,
    Welcome,
    pack_hello,
    read_welcome,
)
from kvtransfer.tcp_stream import ConnectionLost, Patience, Stream
from kvtransfer.zerocopy import ZeroCopy
from runtime.clock import Clock, MonotonicClock
from scheduling.kv_export import KvExport

# Dialling, and then the hello.
_TIMEOUT_S: Final = 5.0


def patience_of(clock: Clock, timeout_s: float, export: KvExport) -> Patience:
    """Raises PeerGone once the time is over: it took the connection and says nothing."""
    until_s = clock.now() + timeout_s

    def wait_on() -> None:
        if clock.now() >= until_s:
            raise PeerGone(export.worker_id, export.incarnation)

    return wait_on


def dial(
    export: KvExport,
    sender_id: str,
    welcome_timeout_s: float = _TIMEOUT_S,
    zerocopy: ZeroCopy = ZeroCopy.NEVER,
) -> Stream:
    """A connection that was welcomed.

    Raises: PeerGone, StaleIncarnation, LayoutMismatch, WrongVersion, ExportUnavailable.
    """
    hello = pack_hello(
        Hello(
            export.worker_id,
            export.incarnation,
            sender_id,
            export.num_blocks,
            export.block_bytes,
            _token_of(export),
        )
    )
    host, port = _split(export)
    try:
        connection = socket.create_connection((host, port), _TIMEOUT_S)
    except OSError as error:
        # Refused, unreachable, or no such name: to this worker the peer is not there.
        raise PeerGone(export.worker_id, export.incarnation) from error
    stream = Stream(connection, zerocopy)
    try:
        patience = patience_of(MonotonicClock(), welcome_timeout_s, export)
        stream.send([memoryview(hello)], patience)
        verdict, incarnation = read_welcome(stream.receive(WELCOME_BYTES, patience))
    except OtherVersion as error:
        stream.reset()
        raise WrongVersion(export.worker_id, error.theirs, VERSION) from error
    except (ConnectionLost, FrameError) as error:
        stream.reset()
        raise PeerGone(export.worker_id, export.incarnation) from error
    except BaseException:
        stream.reset()
        raise
    if verdict is not Welcome.COME_IN:
        stream.close()
        raise _refusal(export, verdict, incarnation)
    return stream


def _refusal(export: KvExport, verdict: Welcome, incarnation: int) -> TransferError:
    match verdict:
        case Welcome.OTHER_INCARNATION if incarnation > export.incarnation:
            return StaleIncarnation(export.worker_id, export.incarnation, incarnation)
        case Welcome.OTHER_LAYOUT:
            return LayoutMismatch(f"{export.address} is not the pool that its export describes")
        case Welcome.FULL:
            return ExportUnavailable(
                f"worker {export.worker_id} has as many senders as it takes",
                "raise max_senders on the receiving worker",
            )
        case _:
            return PeerGone(export.worker_id, export.incarnation)


def _token_of(export: KvExport) -> bytes:
    try:
        token = bytes.fromhex(export.token)
    except ValueError:
        token = b""
    if len(token) != TOKEN_BYTES:
        raise LayoutMismatch(f"{export.address} comes without the token of such an export")
    return token


def _split(export: KvExport) -> tuple[str, int]:
    host, _, port = export.address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise LayoutMismatch(f"{export.address!r} is not the address of such an export")
    return host.removeprefix("[").removesuffix("]"), int(port)
