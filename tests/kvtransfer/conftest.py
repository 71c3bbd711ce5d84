"""Every transport under test. A new one joins the contract by a row in `TRANSPORTS`."""

from collections.abc import Callable, Iterator

import pytest

from kvtransfer.loopback import LoopbackTransport
from kvtransfer.protocol import Transport
from kvtransfer.sending import PushSettings
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.testing import TransportPair

TRANSPORTS: dict[str, Callable[..., Transport]] = {
    "loopback": LoopbackTransport,
    "shared_memory": SharedMemoryTransport,
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
