"""KV pushed from one process into the pool of another, beside a plain copy on the device.

The sender is a process of its own, since within one nothing is mapped; its clock counts, from the
call to the last mark. Without a GPU memory of the host stands for the device's.
"""

import itertools
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.gpu.engine_setup import EngineSetup
from benchmarks.gpu.journal import Journal
from benchmarks.record import Target
from kvtransfer.cuda_ipc import CudaIpcTransport
from kvtransfer.device import DeviceMemory
from kvtransfer.device_testing import FakeDevice
from kvtransfer.protocol import BlockMoves
from kvtransfer.sender_process_testing import SenderProcess, SenderSpec

# Of the plain copy, for blocks of this size and more.
LEAST_SHARE, LEAST_BLOCK_BYTES = 0.9, 1 << 20
# A process takes seconds to start and to find the device.
_CELL_S = 25.0
_SENDER = "benchmark-prefill#1"

_generations = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Setting:
    """How blocks are sent."""

    name: str
    max_batch_bytes: int
    checksum_fraction: float


# The limit is judged by the first: what workers do. The second shows what batches cost.
SETTINGS = (
    Setting("as workers push", 16 << 20, 1 / 16),
    Setting("one batch, no checksums", 1 << 30, 0.0),
)


def measure_push(setup: EngineSetup, journal: Journal) -> None:
    """A row for each size of blocks, setting, and order of the blocks."""
    is_quick = setup.options.is_quick
    total = (512 << 20) if setup.options.is_cuda else (8 << 20)
    if is_quick:
        total = min(total, 4 << 20)
    repeats = 3 if is_quick else 15
    copying = _copy_seconds(setup, total, repeats)
    journal.note(
        limit=f"{LEAST_SHARE} of a plain copy for blocks of {LEAST_BLOCK_BYTES >> 20} MiB and more",
        pushed_bytes=total,
        plain_copy_bytes_per_s=total / copying,
        memory="device" if setup.options.is_cuda else "host memory in place of a device's",
    )
    sizes = (1 << 20,) if is_quick else (1 << 20, 4 << 20, 64 << 10, 256 << 10)
    for block_bytes in sizes:
        for setting in SETTINGS[:1] if is_quick else SETTINGS:
            name = f"blocks of {block_bytes >> 10} KiB, {setting.name}"
            if journal.has_time(name, _CELL_S if setup.options.is_cuda else 5.0):
                cell = Cell(setting, block_bytes, total // block_bytes, repeats)
                _measure_cell(setup, journal, cell, copying)


@dataclass(frozen=True, slots=True)
class Cell:
    """One pool, one sender."""

    setting: Setting
    block_bytes: int
    num_blocks: int
    repeats: int


def _measure_cell(setup: EngineSetup, journal: Journal, cell: Cell, copying: float) -> None:
    device = _device(setup)
    transport = CudaIpcTransport(lambda: device)
    receiver = transport.create_receiver(
        cell.num_blocks, cell.block_bytes, "benchmark-decode", next(_generations)
    )
    spec = SenderSpec(
        receiver.export(),
        _SENDER,
        cell.num_blocks,
        seed=1,
        checksum_fraction=cell.setting.checksum_fraction,
        max_batch_bytes=cell.setting.max_batch_bytes,
    )
    try:
        with SenderProcess(spec) as sender:
            sender.connect()
            for is_scattered in (False, True):
                seconds = []
                for _ in range(cell.repeats + 1):
                    moves = _moves(cell.num_blocks, is_scattered)
                    generations = np.array(moves.generations)
                    receiver.expect(moves.dst_block_ids, generations)
                    seconds.append(sender.push(moves).elapsed_s)
                    if not receiver.poll(moves.dst_block_ids, generations).is_complete:
                        raise RuntimeError("a push ended and its blocks are not there")
                _tell(setup, journal, cell, is_scattered, (seconds[1:], copying))
    finally:
        receiver.close()


def _moves(num_blocks: int, is_scattered: bool) -> BlockMoves:
    targets = list(range(num_blocks))
    if is_scattered:
        random.Random(num_blocks).shuffle(targets)
    generations = (next(_generations),) * num_blocks
    return BlockMoves("benchmark", tuple(range(num_blocks)), tuple(targets), generations)


def _tell(
    setup: EngineSetup,
    journal: Journal,
    cell: Cell,
    is_scattered: bool,
    found: tuple[list[float], float],
) -> None:
    seconds, copying = found
    median = statistics.median(seconds)
    order = "scattered" if is_scattered else "contiguous"
    row = {
        "block_bytes": cell.block_bytes,
        "num_blocks": cell.num_blocks,
        "order": order,
        "setting": cell.setting.name,
        "ms": 1e3 * median,
        "fastest_ms": 1e3 * min(seconds),
        "bytes_per_s": cell.block_bytes * cell.num_blocks / median,
        "of_plain_copy": copying / median,
    }
    name = f"blocks of {cell.block_bytes >> 10} KiB, {order}"
    print(f"push {name}, {cell.setting.name}: {copying / median:.2f} of a plain copy", flush=True)
    is_judged = (
        setup.options.is_cuda
        and not setup.options.is_quick
        and cell.setting is SETTINGS[0]
        and cell.block_bytes >= LEAST_BLOCK_BYTES
    )
    what = f"IPC push, share of a plain copy, {name}"
    targets = [Target(what, (copying / median,), LEAST_SHARE)] if is_judged else []
    journal.row(row, *targets)


def _device(setup: EngineSetup) -> DeviceMemory:
    if not setup.options.is_cuda:
        return FakeDevice()
    # It asks the driver.
    from kvtransfer.cuda_memory import CudaMemory

    return CudaMemory.of_device(0)


def _copy_seconds(setup: EngineSetup, num_bytes: int, repeats: int) -> float:
    """Median of single copies of all the bytes at once, each waited for as a push is."""
    source = torch.ones(num_bytes, dtype=torch.uint8, device=setup.options.device)
    target = torch.empty_like(source)
    copy: Callable[[], object] = lambda: target.copy_(source)  # noqa: E731
    copy()
    seconds = []
    for _ in range(repeats):
        started = setup.clock()
        copy()
        seconds.append(setup.clock() - started)
    return statistics.median(seconds)
