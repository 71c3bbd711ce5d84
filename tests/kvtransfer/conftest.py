"""Every transport under test. A new one joins the contract by a row in `TRANSPORTS`."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from kvtransfer.batches import PushSettings
from kvtransfer.loopback import LoopbackTransport
from kvtransfer.nixl import NixlTransport
from kvtransfer.protocol import Transport
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.tcp import TcpTransport
from kvtransfer.tcp_door import DoorSettings
from kvtransfer.testing import KV_PORT, TransportPair, own_loopback_host
from kvtransfer.zerocopy import ZeroCopy
from runtime.clock import Clock


def make_tcp(
    settings: PushSettings | None = None, clock: Clock | None = None, max_senders: int = 128
) -> TcpTransport:
    """On one port of an address of our own: a restarted receiver is found again."""
    door = DoorSettings(own_loopback_host(), port=KV_PORT, max_senders=max_senders)
    return TcpTransport(door, settings, clock)


def make_tcp_in_place(
    settings: PushSettings | None = None, clock: Clock | None = None, max_senders: int = 128
) -> TcpTransport:
    """With every send the kernel is asked to make no copy, though on this machine it does."""
    settings = replace(settings or PushSettings(), zerocopy=ZeroCopy.INSIST)
    return make_tcp(settings, clock, max_senders)


def make_nixl(
    settings: PushSettings | None = None, clock: Clock | None = None, max_senders: int = 128
) -> NixlTransport:
    """UCX stays on the loopback device."""
    pytest.importorskip("nixl_cu13", reason="the extra `nixl` is not installed")
    os.environ.setdefault("UCX_NET_DEVICES", "lo")
    os.environ.setdefault("NIXL_LOG_LEVEL", "ERROR")
    door = DoorSettings(own_loopback_host(), port=KV_PORT, max_senders=max_senders)
    return NixlTransport(door, settings, clock)


TRANSPORTS: dict[str, Callable[..., Transport]] = {
    "loopback": LoopbackTransport,
    "shared_memory": SharedMemoryTransport,
    "tcp": make_tcp,
    "tcp_in_place": make_tcp_in_place,
    "nixl": make_nixl,
}


@pytest.fixture(scope="session", params=list(TRANSPORTS.values()), ids=list(TRANSPORTS))
def make_transport(request: pytest.FixtureRequest) -> Callable[..., Transport]:
    made: Callable[..., Transport] = request.param
    return made


@pytest.fixture
def make_pair(
    make_transport: Callable[..., Transport],
) -> Iterator[Callable[..., TransportPair]]:
    pairs: list[TransportPair] = []

    def make(**options: object) -> TransportPair:
        pairs.append(TransportPair(make_transport(**options)))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


@pytest.fixture
def pair(make_pair: Callable[..., TransportPair]) -> TransportPair:
    return make_pair(settings=PushSettings(checksum_fraction=1.0))
