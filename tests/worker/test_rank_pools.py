"""KV between real pools of workers with different numbers of ranks, whole and to the last bit."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine.kv_pool import KvLayout
from kvtransfer.batches import PushSettings
from kvtransfer.doors import PoolOwner
from kvtransfer.protocol import BlockMoves, Transport
from kvtransfer.sender_process_testing import SenderProcess, SenderSpec
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.slices import PoolSlices, SliceRoute, routes_to
from kvtransfer.tcp import TcpTransport
from kvtransfer.tcp_door import DoorSettings
from kvtransfer.testing import own_loopback_host, patterned_pool
from runtime.clock import ManualClock, MonotonicClock
from scheduling.ids import BlockId, Generation, TaskId
from scheduling.kv_export import KvTarget
from scheduling.worker_events import (
    AwaitKv,
    ExpectKv,
    KvArrived,
    KvRefused,
    Push,
    PushFinished,
    QuarantineCleared,
    RevokeKv,
)
from worker.rank_kv import KvEvent
from worker.ranks_testing import (
    ARRIVAL_TIMEOUT_S,
    DecodeRanks,
    PrefillRanks,
    RankSetup,
    heads_of,
)

LAYOUT = KvLayout(num_layers=3, num_kv_heads=8, head_dim=8, block_size=4, dtype="bfloat16")
NUM_BLOCKS = 12
# Neighbours, and such that are none.
SOURCE = tuple(map(BlockId, (1, 2, 3, 8, 5, 11)))
TARGET = tuple(map(BlockId, (4, 5, 6, 2, 9, 0)))
TAGS = (Generation(1),) * len(SOURCE)
TASK = TaskId("r/0~1")
ALL_CHECKED = PushSettings(checksum_fraction=1.0)

_lives = itertools.count(1)


def over_tcp() -> Transport:
    return TcpTransport(DoorSettings(own_loopback_host()), ALL_CHECKED)


TRANSPORTS: dict[str, Callable[[], Transport]] = {
    "shared_memory": lambda: SharedMemoryTransport(settings=ALL_CHECKED),
    "tcp": over_tcp,
}


@pytest.fixture(params=list(TRANSPORTS.values()), ids=list(TRANSPORTS))
def make_transport(request: pytest.FixtureRequest) -> Callable[[], Transport]:
    made: Callable[[], Transport] = request.param
    return made


@pytest.fixture
def close_later() -> Iterator[list[Callable[[], None]]]:
    closing: list[Callable[[], None]] = []
    yield closing
    for close in reversed(closing):
        close()


def random_pool(num_slices: int) -> Tensor:
    """[num_blocks, head_groups, num_layers, 2, heads_of_group, block_size, head_dim]"""
    shape = (NUM_BLOCKS, num_slices, 3, 2, LAYOUT.num_kv_heads // num_slices, 4, 8)
    generator = torch.Generator().manual_seed(5)
    return torch.randn(shape, generator=generator).to(torch.bfloat16)


def setup_of(num_ranks: int, num_slices: int, transport: Transport) -> RankSetup:
    return RankSetup(num_ranks, replace(LAYOUT, head_groups=num_slices), [transport])


def decode_ranks(setup: RankSetup, clock: ManualClock | None = None) -> DecodeRanks:
    owner = PoolOwner(f"decode-{os.getpid()}", next(_lives))
    return DecodeRanks(setup, NUM_BLOCKS, owner, clock or ManualClock())


def pushes(decode: DecodeRanks, cuts: Sequence[int] = (0, 2, 6)) -> list[Push]:
    """All blocks of one transfer, in several pushes."""
    target = KvTarget("t", decode.export, TARGET, TAGS)
    return [Push(TASK, target, first, SOURCE[first:end]) for first, end in itertools.pairwise(cuts)]


def send_all(
    route: SliceRoute, transport: Transport, close_later: list[Callable[[], None]]
) -> None:
    """What one sending rank has of all blocks; its pool is empty."""
    sender = transport.connect(
        route.export.by_transport()[transport.name],
        sender_id="prefill-0#1",
        block_bytes=route.export.block_bytes,
    )
    close_later.append(sender.close)
    pool = bytes(NUM_BLOCKS * route.own.num * route.export.block_bytes)
    moves = route.cut(BlockMoves("t", SOURCE, TARGET, TAGS))
    sender.push(memoryview(pool), moves, timeout_s=20.0)


def wait_for(condition: Callable[[], bool]) -> None:
    clock = MonotonicClock()
    deadline_at_s = clock.now() + 20.0
    while not condition():
        assert clock.now() < deadline_at_s, "the condition did not come true in time"


@pytest.mark.parametrize(
    ("num_senders", "num_receivers", "num_slices"),
    [(1, 2, 2), (2, 1, 2), (2, 4, 4), (4, 1, 4), (2, 2, 2), (2, 2, 8), (1, 1, 4), (1, 1, 1)],
)
def test_every_rank_gets_its_heads_of_every_token(
    make_transport: Callable[[], Transport],
    close_later: list[Callable[[], None]],
    num_senders: int,
    num_receivers: int,
    num_slices: int,
) -> None:
    whole = random_pool(num_slices)
    prefill = PrefillRanks(setup_of(num_senders, num_slices, make_transport()), whole)
    decode = decode_ranks(setup_of(num_receivers, num_slices, make_transport()))
    close_later += [decode.close, prefill.close]
    decode.perform(ExpectKv(TARGET, TAGS))
    decode.perform(AwaitKv(TASK, TARGET, TAGS))
    told: list[KvEvent] = []
    for push in pushes(decode):
        assert decode.poll() == []
        prefill.perform(push)
        told += prefill.next_events()
    block_bytes = LAYOUT.block_bytes
    ended = [event for event in told if isinstance(event, PushFinished)]
    assert [(e.num_blocks, e.num_bytes, e.error) for e in ended] == [
        (2, 2 * block_bytes, None),
        (4, 4 * block_bytes, None),
    ]
    (arrived,) = decode.poll()
    assert isinstance(arrived, KvArrived)
    assert arrived.transport == ended[0].transport
    expected = torch.zeros_like(whole)
    expected[list(TARGET)] = whole[list(SOURCE)]
    for rank, pool in enumerate(decode.pools):
        assert torch.equal(pool.tensor, heads_of(expected, rank, num_receivers))
    decode.perform(RevokeKv(TASK, TARGET))
    assert decode.poll() == [QuarantineCleared(TASK)]


def test_nothing_has_arrived_while_one_ranks_share_is_missing(
    make_transport: Callable[[], Transport], close_later: list[Callable[[], None]]
) -> None:
    clock, transport = ManualClock(), make_transport()
    decode = decode_ranks(setup_of(1, 2, transport), clock)
    close_later.append(decode.close)
    decode.perform(ExpectKv(TARGET, TAGS))
    decode.perform(AwaitKv(TASK, TARGET, TAGS))
    # The second of two senders alone.
    (route,) = routes_to(decode.export, PoolSlices.of_rank(1, 2, 2))
    send_all(route, transport, close_later)
    assert decode.poll() == []
    clock.advance(ARRIVAL_TIMEOUT_S + 1)
    (refused,) = decode.poll()
    assert isinstance(refused, KvRefused)
    # Half of each.
    assert refused.message.startswith(f"{len(TARGET) // 2} KV blocks")


def test_a_worker_that_cuts_blocks_otherwise_is_refused_before_anything_moves(
    make_transport: Callable[[], Transport], close_later: list[Callable[[], None]]
) -> None:
    prefill = PrefillRanks(setup_of(1, 4, make_transport()), random_pool(4))
    decode = decode_ranks(setup_of(2, 2, make_transport()))
    close_later += [decode.close, prefill.close]
    decode.perform(ExpectKv(TARGET, TAGS))
    (push,) = pushes(decode, (0, 6))
    prefill.perform(push)
    (event,) = prefill.next_events()
    assert isinstance(event, PushFinished)
    assert event.error is not None
    assert "give both the same --kv-slices" in event.error
    assert not any(pool.tensor.any() for pool in decode.pools)


def test_a_refused_share_is_told_once_and_what_went_well_is_no_success(
    make_transport: Callable[[], Transport], close_later: list[Callable[[], None]]
) -> None:
    prefill = PrefillRanks(setup_of(2, 4, make_transport()), random_pool(4))
    decode = decode_ranks(setup_of(4, 4, make_transport()))
    close_later += [decode.close, prefill.close]
    decode.perform(ExpectKv(TARGET, TAGS))
    decode.perform(AwaitKv(TASK, TARGET, TAGS))
    # One rank of the peer no longer wants one of the blocks.
    decode.receivers[3].revoke([int(TARGET[1])])
    (push,) = pushes(decode, (0, 6))
    prefill.perform(push)
    (event,) = prefill.next_events()
    assert isinstance(event, PushFinished)
    assert (event.num_blocks, event.num_bytes) == (0, 0)
    assert event.error is not None
    assert "generation" in event.error or "cancelled" in event.error
    assert [type(event) for event in decode.poll()] == [KvRefused]
    assert decode.poll() == []


@pytest.mark.parametrize("num_units_at_kill", [0, 7])
def test_a_sender_that_is_killed_in_the_middle_leaves_nothing_that_is_not_whole(
    make_transport: Callable[[], Transport],
    close_later: list[Callable[[], None]],
    num_units_at_kill: int,
) -> None:
    """One of two ranks dies: of its slices some are whole, the others count as nothing."""
    clock, transport = ManualClock(), make_transport()
    decode = decode_ranks(setup_of(1, 4, transport), clock)
    close_later.append(decode.close)
    decode.perform(ExpectKv(TARGET, TAGS))
    decode.perform(AwaitKv(TASK, TARGET, TAGS))
    alive, dying = (routes_to(decode.export, PoolSlices.of_rank(rank, 2, 4))[0] for rank in (0, 1))
    send_all(alive, transport, close_later)
    moves = dying.cut(BlockMoves("t", SOURCE, TARGET, TAGS))
    receiver, unit_bytes = decode.receivers[0], LAYOUT.block_bytes // 4

    def num_arrived() -> int:
        return receiver.poll(moves.dst_block_ids, moves.generations).num_arrived

    spec = SenderSpec(
        dying.export.by_transport()[transport.name],
        "prefill-0/1#1",
        num_blocks=2 * NUM_BLOCKS,
        seed=1,
        # Each unit for itself, so that they may be counted.
        max_batch_bytes=unit_bytes,
    )
    with SenderProcess(spec) as sender:
        sender.connect()
        sender.begin_push(moves)
        wait_for(lambda: num_arrived() >= num_units_at_kill)
        sender.kill()
    source, pool = patterned_pool(2 * NUM_BLOCKS, unit_bytes, seed=1), receiver.buffer()
    for src, dst in zip(moves.src_block_ids, moves.dst_block_ids, strict=True):
        if receiver.poll([dst], [1]).is_complete:
            theirs = bytes(pool[dst * unit_bytes : (dst + 1) * unit_bytes])
            assert theirs == bytes(source[src * unit_bytes : (src + 1) * unit_bytes])
    if num_arrived() < moves.num_blocks:
        assert decode.poll() == []
        clock.advance(ARRIVAL_TIMEOUT_S + 1)
        assert [type(event) for event in decode.poll()] == [KvRefused]
    decode.perform(RevokeKv(TASK, TARGET))
    told: list[KvEvent] = []

    def is_clear() -> bool:
        told.extend(decode.poll())
        return QuarantineCleared(TASK) in told

    wait_for(is_clear)
    assert told == [QuarantineCleared(TASK)]
