"""Values that cross the contract refuse what can never be meant."""

import dataclasses

import pytest

from kvtransfer import errors
from kvtransfer.protocol import Arrival, BlockMoves
from scheduling.ids import Incarnation, WorkerId
from scheduling.kv_export import KvDoor, KvExport


@pytest.mark.parametrize(
    ("src", "dst", "generations", "problem"),
    [
        ((0, 1), (0,), (1,), "one length"),
        ((0,), (0,), (1, 2), "one length"),
        ((0, 1), (4, 4), (1, 1), "twice"),
        # The mark of a block that is granted to nobody.
        ((0,), (4,), (0,), "at least 1"),
        ((0,), (4,), (-1,), "at least 1"),
    ],
)
def test_moves_that_contradict_themselves_are_refused(
    src: tuple[int, ...], dst: tuple[int, ...], generations: tuple[int, ...], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        BlockMoves("r/0", src, dst, generations)


def test_damage_is_reported_before_staleness() -> None:
    with pytest.raises(errors.ChecksumMismatch) as caught:
        Arrival(0, False, damaged_block_ids=(3, 5), stale_block_ids=(6,)).require_sound()
    assert caught.value.block_ids == (3, 5)
    Arrival(2, True).require_sound()


def test_an_export_is_made_of_plain_values_for_the_wire() -> None:
    export = KvExport(
        "shared_memory",
        "tandem-kv.decode-0.1",
        8,
        512,
        WorkerId("decode-0"),
        Incarnation(1),
        "boot/1:1",
    )
    assert {type(value) for value in dataclasses.asdict(export).values()} == {str, int, tuple}


def test_each_way_into_a_pool_is_an_export_of_its_own() -> None:
    door = KvDoor("tcp", "10.0.0.7:7710", "", "ab" * 16)
    export = KvExport(
        "shared_memory",
        "tandem-kv.decode-0.1",
        8,
        512,
        WorkerId("decode-0"),
        Incarnation(1),
        "boot/1:1",
        alternatives=(door,),
    )
    ways = export.by_transport()
    assert list(ways) == ["shared_memory", "tcp"]
    assert ways["shared_memory"] == dataclasses.replace(export, alternatives=())
    tcp = ways["tcp"]
    assert (tcp.address, tcp.host, tcp.token) == (door.address, "", door.token)
    assert (tcp.num_blocks, tcp.worker_id, tcp.alternatives) == (8, "decode-0", ())
    assert door.token not in repr(export)


def leaves() -> list[type[errors.TransferError]]:
    return errors.TransferError.__subclasses__()


def test_every_error_has_a_code_of_its_own_and_is_in_the_drawn_tree() -> None:
    codes = [leaf.code for leaf in leaves() if leaf.__module__ == errors.__name__]
    assert len(set(codes)) == len(codes)
    assert errors.TransferError.code not in codes
    assert errors.__doc__ is not None
    for leaf in leaves():
        if leaf.__module__ == errors.__name__:
            assert f"─ {leaf.__name__} " in errors.__doc__
