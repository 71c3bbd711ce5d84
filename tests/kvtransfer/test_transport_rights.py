"""What every transport promises about rights: grants, revocation, quarantine, lives of peers."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from kvtransfer.batches import PushSettings
from kvtransfer.device import write_bytes
from kvtransfer.errors import (
    ExportUnavailable,
    GrantWithdrawn,
    LayoutMismatch,
    PeerGone,
    StaleGeneration,
    StaleIncarnation,
    WrongHost,
)
from kvtransfer.testing import (
    PAIR_BLOCK_BYTES,
    PAIR_NUM_BLOCKS,
    PATIENCE_S,
    StallingCopy,
    TransportPair,
    moves_of,
    next_incarnation,
)

NUM_BLOCKS, BLOCK_BYTES = PAIR_NUM_BLOCKS, PAIR_BLOCK_BYTES


def test_a_block_that_was_not_granted_is_refused_and_stays_as_it_was(pair: TransportPair) -> None:
    with pytest.raises(StaleGeneration) as caught:
        pair.push(moves_of((0,), (6,), generation=3))
    assert (caught.value.block_id, caught.value.generation) == (6, 3)
    assert caught.value.expected is None
    assert pair.target_block(6) == bytes(BLOCK_BYTES)


@pytest.mark.parametrize("generation", [1, 3])
def test_an_older_or_newer_generation_than_granted_is_refused(
    pair: TransportPair, generation: int
) -> None:
    pair.receiver.expect([6], [2])
    with pytest.raises(StaleGeneration) as caught:
        pair.push(moves_of((0,), (6,), generation))
    assert caught.value.expected == 2
    assert pair.target_block(6) == bytes(BLOCK_BYTES)


def test_one_stale_block_stops_its_whole_batch(pair: TransportPair) -> None:
    pair.receiver.expect([1, 2], [1, 1])
    pair.receiver.revoke([2])
    with pytest.raises(StaleGeneration):
        pair.push(moves_of((0, 1), (1, 2)))
    assert pair.receiver.poll([1], [1]).num_arrived == 0
    assert pair.target_block(1) == bytes(BLOCK_BYTES)


def test_a_late_sender_cannot_touch_a_block_granted_anew(pair: TransportPair) -> None:
    pair.receiver.expect([6], [1])
    pair.receiver.revoke([6])
    pair.receiver.revoke([6])
    assert pair.receiver.quarantine_clear([6])
    pair.receiver.expect([6], [2])
    pair.push(moves_of((3,), (6,), generation=2))
    with pytest.raises(StaleGeneration):
        pair.push(moves_of((0,), (6,), generation=1))
    assert pair.target_block(6) == pair.source_block(3)
    assert pair.receiver.poll([6], [2]).is_complete


def test_bytes_of_an_earlier_grant_do_not_count_for_the_next(pair: TransportPair) -> None:
    pair.receiver.expect([6], [1])
    pair.push(moves_of((0,), (6,)))
    pair.receiver.revoke([6])
    pair.receiver.expect([6], [2])
    assert pair.receiver.poll([6], [2]).num_arrived == 0
    arrival = pair.receiver.poll([6], [1])
    assert (arrival.num_arrived, arrival.stale_block_ids) == (0, (6,))
    with pytest.raises(GrantWithdrawn):
        arrival.require_sound()


def test_a_generation_is_never_granted_twice(pair: TransportPair) -> None:
    pair.receiver.expect([6], [4])
    pair.receiver.expect([6], [4])  # a repeated message is harmless
    with pytest.raises(StaleGeneration):
        pair.receiver.expect([5, 6], [1, 3])
    with pytest.raises(StaleGeneration):
        pair.push(moves_of((0,), (5,)))  # nothing of a refused grant holds
    pair.receiver.revoke([6])
    with pytest.raises(StaleGeneration):
        pair.receiver.expect([6], [4])
    pair.receiver.expect([6], [5])


def test_generations_below_one_are_refused(pair: TransportPair) -> None:
    with pytest.raises(ValueError, match="below 1"):
        pair.receiver.expect([0], [0])


def test_an_export_that_lies_about_its_pool_is_refused(pair: TransportPair) -> None:
    lie = replace(pair.receiver.export(), num_blocks=NUM_BLOCKS * 2)
    with pytest.raises(LayoutMismatch):
        pair.transport.connect(lie, sender_id="p", block_bytes=BLOCK_BYTES)


def test_an_export_of_another_host_is_refused_unless_the_network_leads_there(
    pair: TransportPair,
) -> None:
    assert pair.transport.can_reach(pair.receiver.export()) is None
    foreign = replace(pair.receiver.export(), host="elsewhere")
    if pair.transport.can_reach(foreign) is None:
        pair.transport.connect(foreign, sender_id="p", block_bytes=BLOCK_BYTES).close()
        return
    with pytest.raises(WrongHost, match="elsewhere"):
        pair.transport.connect(foreign, sender_id="p", block_bytes=BLOCK_BYTES)


def test_a_revoked_block_stays_in_quarantine_while_its_sender_copies(
    make_pair: Callable[..., TransportPair],
) -> None:
    stall = StallingCopy()
    pair = make_pair(settings=PushSettings(copy_bytes=stall))
    pair.receiver.expect([4, 5, 11], [1, 1, 1])
    outcome: list[BaseException] = []

    def push() -> None:
        try:
            pair.push(moves_of((0, 1), (4, 5)))
        except StaleGeneration as error:
            outcome.append(error)

    thread = threading.Thread(target=push)
    thread.start()
    assert stall.has_begun.wait(PATIENCE_S)
    pair.receiver.revoke([4, 5, 11])
    assert not pair.receiver.quarantine_clear([4])
    assert not pair.receiver.quarantine_clear([0, 5])
    assert not pair.receiver.forget_sender("prefill-0#1")  # it lives
    assert pair.receiver.quarantine_clear([11])
    assert pair.receiver.quarantine_clear([])
    assert pair.receiver.forget_sender("someone else")
    stall.may_end.set()
    thread.join(PATIENCE_S)
    assert pair.receiver.quarantine_clear([4, 5])
    assert isinstance(outcome[0], StaleGeneration)  # checked again after the copy
    assert pair.receiver.poll([4, 5], [1, 1]).num_arrived == 0


def test_senders_beyond_the_limit_are_refused_until_one_leaves(
    make_pair: Callable[..., TransportPair],
) -> None:
    pair = make_pair(max_senders=2)
    second = pair.connect("prefill-1#1")
    with pytest.raises(ExportUnavailable, match="max_senders"):
        pair.connect("prefill-2#1")
    second.close()
    second.close()
    pair.connect("prefill-2#1").close()


def test_a_left_place_is_free_even_while_an_error_keeps_the_connection_alive(
    make_pair: Callable[..., TransportPair],
) -> None:
    pair = make_pair(max_senders=1)
    with pytest.raises(StaleGeneration) as kept:
        pair.push(moves_of((0,), (0,)))
    assert kept.value.__traceback__ is not None  # holds the frames, and they the mapping
    pair.sender.close()
    pair.connect("prefill-1#1").close()


def test_a_closed_receiver_is_a_gone_peer(pair: TransportPair) -> None:
    pair.receiver.expect([0], [1])
    memory = pair.receiver.memory()
    pair.sender.check()
    pair.receiver.close()
    pair.receiver.close()
    write_bytes(memory, 0, b"\7")  # still the owner's memory
    with pytest.raises(PeerGone):
        pair.sender.check()
    with pytest.raises(PeerGone):
        pair.push(moves_of((0,), (0,)))
    with pytest.raises(PeerGone):
        pair.connect()


def test_a_sender_of_an_earlier_life_is_told_so(pair: TransportPair) -> None:
    old_export = pair.receiver.export()
    pair.receiver.close()
    newer = pair.transport.create_receiver(
        NUM_BLOCKS, BLOCK_BYTES, pair.worker_id, next_incarnation()
    )
    newer.expect([0], [1])
    with pytest.raises(StaleIncarnation) as caught:
        pair.push(moves_of((0,), (0,)))
    assert caught.value.current_incarnation == newer.export().incarnation
    with pytest.raises(StaleIncarnation):
        pair.transport.connect(old_export, sender_id="p", block_bytes=BLOCK_BYTES)
    assert newer.poll([0], [1]).num_arrived == 0
    newer.close()


def test_one_life_exports_once(pair: TransportPair) -> None:
    export = pair.receiver.export()
    with pytest.raises(ExportUnavailable, match="already"):
        pair.transport.create_receiver(1, 8, export.worker_id, export.incarnation)


def test_a_closed_connection_is_not_used(pair: TransportPair) -> None:
    pair.sender.close()
    with pytest.raises(RuntimeError, match="closed"):
        pair.push(moves_of((), ()))
