"""Where the KV pool of a worker lies: host memory, or a GPU's, as the KV transfer gave it.

Transports address either kind; the engine sees a tensor over the same bytes.
"""

from torch import Tensor

from engine.kv_pool import KvLayout, KvPool
from kvtransfer.cuda_memory import CudaPool
from kvtransfer.device import DeviceMemory, DevicePool, KvSource


def pool_over(memory: KvSource, layout: KvLayout, num_blocks: int) -> KvPool:
    """The pool of a receiver; scratch blocks behind its own are left alone."""
    if isinstance(memory, memoryview):
        return KvPool(layout, num_blocks, buffer=memory)
    return KvPool(layout, num_blocks, "cuda", _bytes_of(memory)[: num_blocks * layout.block_bytes])


def private_pool(
    layout: KvLayout, num_blocks: int, memory: DeviceMemory | None
) -> tuple[KvPool, KvSource]:
    """A pool that nobody else writes into, and the same as what is pushed from.

    Raises: ExportUnavailable.
    """
    if memory is None:
        pool = KvPool(layout, num_blocks)
        return pool, pool.as_bytes()
    # Not torch's own: copies outside of torch read it for as long as a push takes.
    source = memory.allocate(num_blocks * layout.block_bytes)
    return pool_over(source, layout, num_blocks), source


def _bytes_of(memory: DevicePool) -> Tensor:
    """Aliases the pool, by its own device: on any other torch would make a copy, unasked."""
    assert isinstance(memory, CudaPool), "a worker's pools are CUDA's"
    return memory.tensor()
