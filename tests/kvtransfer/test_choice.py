"""Which way into a pool is taken, over all that can be wrong with each of three ways."""

import itertools

import pytest

from kvtransfer.choice import ChosenPath, connect_best
from kvtransfer.errors import (
    ExportUnavailable,
    LayoutMismatch,
    LinkBroken,
    PathTooSlow,
    PeerGone,
    StaleIncarnation,
    TransferError,
    WrongHost,
)
from kvtransfer.protocol import KvSender
from kvtransfer.testing import OneWay, WayState
from scheduling.ids import Incarnation, WorkerId
from scheduling.kv_export import KvDoor, KvExport

NAMES = ("nixl", "shared_memory", "tcp")
# What one way raises that speaks against this way only.
CLOSED = {
    WayState.PEER_GONE: PeerGone,
    WayState.UNAVAILABLE: ExportUnavailable,
    WayState.WRONG_HOST: WrongHost,
    WayState.LINK_BROKEN: LinkBroken,
    WayState.TOO_SLOW: PathTooSlow,
}
# What the peer says of itself, whichever way it is asked.
FINAL = {WayState.STALE: StaleIncarnation, WayState.OTHER_LAYOUT: LayoutMismatch}


def export_of(names: list[str]) -> KvExport:
    """A pool with a door for each name; without a name, one that nobody here has."""
    first, *others = names or ["carrier pigeon"]
    doors = tuple(KvDoor(name, f"at-{name}", "", "") for name in others)
    life = (WorkerId("decode-0"), Incarnation(3))
    return KvExport(first, f"at-{first}", 8, 64, *life, host="", alternatives=doors)


def what_is_left(failed: list[WayState]) -> type[TransferError]:
    """The error when every way that could be tried failed so."""
    if not failed:
        return LayoutMismatch
    if len(failed) == 1 or set(failed) == {WayState.PEER_GONE}:
        return CLOSED[failed[0]]
    return PathTooSlow if WayState.TOO_SLOW in failed else ExportUnavailable


@pytest.mark.parametrize("states", list(itertools.product(WayState, repeat=3)))
def test_every_way_is_tried_until_one_works_or_the_peer_itself_refuses(
    states: tuple[WayState, ...],
) -> None:
    ways = {name: OneWay(name, state) for name, state in zip(NAMES, states, strict=True)}
    offered = [name for name, way in ways.items() if way.state is not WayState.NOT_OFFERED]
    ends = [*FINAL, WayState.WORKS]
    deciding = next((name for name, way in ways.items() if way.state in ends), None)
    reached = NAMES[: NAMES.index(deciding) + 1] if deciding else NAMES

    def measure(sender: KvSender, export: KvExport) -> float | None:
        return ways[export.transport].measure(sender, export)

    def connect() -> ChosenPath:
        export = export_of(offered)
        return connect_best(ways, export, sender_id="p", block_bytes=64, measure=measure)

    failed = [ways[name].state for name in reached if ways[name].state in CLOSED]
    if deciding is not None and ways[deciding].state is WayState.WORKS:
        path = connect()
        assert path.transport == deciding
        assert (path.reason == "first choice") == (len(reached) == 1)
        assert all(f"{name}: " in path.reason for name in reached[:-1])
        # What is not offered, or is another machine's, is nothing to mend.
        mendable = [name for name in reached[:-1] if ways[name].state in CLOSED]
        assert [way.partition(":")[0] for way in path.lost_ways] == mendable
    else:
        with pytest.raises(TransferError) as caught:
            connect()
        wanted = FINAL[ways[deciding].state] if deciding else what_is_left(failed)
        assert caught.type is wanted
        # Jobs of a peer are given up together only where nothing says that it lives.
        assert caught.value.peer_is_lost == (wanted in (PeerGone, StaleIncarnation))
        if len(failed) > 1 and wanted in (ExportUnavailable, PathTooSlow):
            assert all(name in str(caught.value) for name in NAMES)
    tried = [name for name, way in ways.items() if way.num_connects]
    could = [*CLOSED, *ends]
    assert tried == [name for name in reached if ways[name].state in could]
    assert all(way.num_connects <= 1 for way in ways.values())
    # What was refused is closed again.
    assert [name for name, way in ways.items() if way.num_open] == [
        name for name in [deciding] if name is not None and ways[name].state is WayState.WORKS
    ]
