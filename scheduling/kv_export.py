"""How the KV pool of a worker is reached by those that write into it, and where in it."""

from dataclasses import asdict, dataclass, field, replace
from typing import Final

from scheduling.ids import BlockId, Generation, Incarnation, WorkerId

# Under which scratch blocks are granted, for as long as their pool lives.
SCRATCH_GENERATION: Final = 1


@dataclass(frozen=True, slots=True)
class KvDoor:
    """One more transport by which a pool is reached; the fields are those of `KvExport`."""

    transport: str
    address: str
    host: str
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class KvExport:
    """How a peer reaches the KV pool of one life of a worker."""

    transport: str
    # Meaning depends on the transport: a file name, or host:port.
    address: str
    num_blocks: int
    block_bytes: int
    worker_id: WorkerId
    incarnation: Incarnation
    host: str  # identifies the machine; shared memory is refused across machines
    # A sender shows it to a transport that strangers can reach as well; 32 hex digits or none.
    token: str = field(default="", repr=False)
    # Other ways into the same pool; the sender takes the one it likes best.
    alternatives: tuple[KvDoor, ...] = ()
    # The last so many never hold KV: senders write there, under SCRATCH_GENERATION, to measure.
    num_scratch_blocks: int = 0
    # Where KV blocks are cut into slices of some heads each, this pool holds the slices
    # [first_slice, first_slice + num_slices) of every block. Each is a block to the transport:
    # num_blocks, block_bytes and num_scratch_blocks count those.
    first_slice: int = 0
    num_slices: int = 1
    # The pools of the worker's other ranks, with the other slices; they name no others.
    other_ranks: tuple["KvExport", ...] = ()

    @property
    def num_kv_blocks(self) -> int:
        """Blocks of which this pool has slices, and which tasks may hold."""
        return (self.num_blocks - self.num_scratch_blocks) // self.num_slices

    def by_transport(self) -> "dict[str, KvExport]":
        """Each way into the pool as an export of its own, without alternatives or other ranks.

        What a pool holds is no business of the transport, so it is left out.
        """
        way = replace(self, alternatives=(), other_ranks=(), first_slice=0, num_slices=1)
        ways = {self.transport: way}
        for door in self.alternatives:
            ways[door.transport] = replace(way, **asdict(door))
        return ways


@dataclass(frozen=True, slots=True)
class KvTarget:
    """Where the KV of one task goes: blocks of a decode worker, in the order of the tokens."""

    transfer_id: str
    export: KvExport
    block_ids: tuple[BlockId, ...]
    generations: tuple[Generation, ...]
    # Which block of the sequence block_ids[0] is for: those before it are there already.
    first_block_index: int = 0
