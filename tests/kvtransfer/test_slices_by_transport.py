"""Slices between workers of different tensor-parallel degrees, over every transport there is."""

import inspect
import os
from collections.abc import Callable

import pytest

from kvtransfer.batches import PushSettings
from kvtransfer.cuda_ipc import CudaIpcTransport
from kvtransfer.device import KvSource, read_bytes
from kvtransfer.errors import StaleGeneration
from kvtransfer.protocol import BlockMoves, KvReceiver, KvSender, Transport
from kvtransfer.slices import PoolSlices, export_of_rank, join_exports, pool_name, routes_to
from kvtransfer.staged_tcp import StagedTcpTransport
from kvtransfer.testing import PATIENCE_S, next_incarnation, patterned_pool
from scheduling.kv_export import KvExport

NUM_BLOCKS, SLICE_BYTES, NUM_SLICES = 8, 256, 4
# Of a block that no rank divides: what all slices together are.
WHOLE = patterned_pool(NUM_BLOCKS, SLICE_BYTES * NUM_SLICES, seed=6)
MOVES = BlockMoves("r/0", (5, 6, 1), (2, 3, 7), (4, 5, 6), first_index=1)


def slice_of_block(block_id: int, place: int) -> bytes:
    at = (block_id * NUM_SLICES + place) * SLICE_BYTES
    return bytes(WHOLE[at : at + SLICE_BYTES])


class Ranks:
    """The receiving worker: a pool for each rank."""

    def __init__(self, make: Callable[..., Transport], num_ranks: int) -> None:
        settings = PushSettings(checksum_fraction=1.0, max_batch_bytes=2 * SLICE_BYTES)
        life = next_incarnation()
        self.slices = [PoolSlices.of_rank(r, num_ranks, NUM_SLICES) for r in range(num_ranks)]
        self.transports: list[Transport] = []
        self.receivers: list[KvReceiver] = []
        worker_id = f"decode-{os.getpid()}"
        for rank, held in enumerate(self.slices):
            self.transports.append(_beside_others(make, settings))
            self.receivers.append(
                self.transports[-1].create_receiver(
                    NUM_BLOCKS * held.num, SLICE_BYTES, pool_name(worker_id, rank), life
                )
            )

    def export(self) -> KvExport:
        return join_exports(
            [
                export_of_rank(receiver.export(), held)
                for receiver, held in zip(self.receivers, self.slices, strict=True)
            ]
        )

    def grant(self, moves: BlockMoves) -> None:
        for receiver, held in zip(self.receivers, self.slices, strict=True):
            units = held.units_of(moves.dst_block_ids)
            receiver.expect(units, held.for_units(moves.generations))

    def have_all(self, moves: BlockMoves) -> bool:
        return all(
            receiver.poll(
                held.units_of(moves.dst_block_ids), held.for_units(moves.generations)
            ).is_complete
            for receiver, held in zip(self.receivers, self.slices, strict=True)
        )

    def slice_at(self, block_id: int, place: int) -> bytes:
        rank, inside = divmod(place, self.slices[0].num)
        unit = block_id * self.slices[rank].num + inside
        memory = self.receivers[rank].memory()
        return read_bytes(memory, unit * SLICE_BYTES, SLICE_BYTES)

    def close(self) -> None:
        for receiver in self.receivers:
            receiver.close()


def _beside_others(make: Callable[..., Transport], settings: PushSettings) -> Transport:
    """Each rank listens on a port of its own."""
    has_port = "port" in inspect.signature(make).parameters
    return make(settings=settings, port=0) if has_port else make(settings=settings)


def source_of(transport: Transport, held: PoolSlices) -> KvSource:
    """What a sending rank holds of every block."""
    content = b"".join(
        slice_of_block(block, place)
        for block in range(NUM_BLOCKS)
        for place in range(held.first, held.end)
    )
    if isinstance(transport, CudaIpcTransport | StagedTcpTransport):
        return transport.new_pool(content)
    return memoryview(bytearray(content))


@pytest.mark.parametrize(("num_senders", "num_receivers"), [(2, 1), (1, 2), (4, 2), (2, 4)])
def test_every_slice_lands_in_its_place_whatever_the_degrees(
    make_transport: Callable[..., Transport], num_senders: int, num_receivers: int
) -> None:
    ranks = Ranks(make_transport, num_receivers)
    senders: list[KvSender] = []
    try:
        ranks.grant(MOVES)
        for rank in range(num_senders):
            own = PoolSlices.of_rank(rank, num_senders, NUM_SLICES)
            assert not ranks.have_all(MOVES)
            for route in routes_to(ranks.export(), own):
                transport = ranks.transports[route.theirs.first // route.theirs.num]
                way = route.export.by_transport()[transport.name]
                senders.append(
                    transport.connect(way, sender_id=f"prefill-0/{rank}#1", block_bytes=SLICE_BYTES)
                )
                source = source_of(transport, own)
                senders[-1].push(source, route.cut(MOVES), timeout_s=PATIENCE_S)
        assert ranks.have_all(MOVES)
        for src, dst in zip(MOVES.src_block_ids, MOVES.dst_block_ids, strict=True):
            for place in range(NUM_SLICES):
                assert ranks.slice_at(dst, place) == slice_of_block(src, place)
        assert not any(ranks.slice_at(0, 0))
        # A block that is taken back is refused by each rank for itself, whichever slice comes.
        ranks.receivers[-1].revoke(ranks.slices[-1].units_of(MOVES.dst_block_ids[:1]))
        with pytest.raises(StaleGeneration):
            senders[-1].push(source, route.cut(MOVES), timeout_s=PATIENCE_S)
    finally:
        for sender in senders:
            sender.close()
        ranks.close()
