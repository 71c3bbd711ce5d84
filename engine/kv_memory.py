"""How many KV blocks a GPU has room for: measured with the model loaded, not guessed.

The worker computes the largest pass that its settings allow, over a small pool. What the device
then had in use at most, less that pool, is what every later pass needs beside the KV cache.
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from engine.attention.backend import AttentionBackend
from engine.kv_pool import KvLayout, KvPool
from engine.model_runner import ModelRunner
from engine.models.model import Model
from scheduling.sampling import SamplingParams
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan

_MIB = 1 << 20


class TooLittleDeviceMemory(ValueError):
    """The share of the device's memory that the worker may take does not hold one KV block."""

    def __init__(self, usage: "DeviceUsage", fraction: float, block_bytes: int) -> None:
        needed = usage.others_bytes + usage.peak_bytes + block_bytes
        super().__init__(
            f"{fraction:.0%} of the device's {usage.total_bytes // _MIB} MiB leave no room for KV: "
            f"{usage.others_bytes // _MIB} MiB are in use beside the model, and the model with its "
            f"largest pass takes {usage.peak_bytes // _MIB} MiB; raise --kv-memory-fraction above "
            f"{needed / usage.total_bytes:.2f}, lower --max-num-batched-tokens or --max-num-seqs, "
            "or take a smaller model"
        )


@dataclass(frozen=True, slots=True)
class DeviceUsage:
    """Memory of one device, in bytes."""

    total_bytes: int
    # Of other processes, and of the driver for this one.
    others_bytes: int
    # Of this process's tensors, at most, without KV.
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class PassLimits:
    """The largest pass that a worker plans."""

    max_num_batched_tokens: int
    max_num_seqs: int


class DeviceStatistics(Protocol):
    """What a device tells of its memory."""

    def reset_peak(self) -> None: ...

    def usage(self) -> DeviceUsage:
        """Since `reset_peak`; memory that no tensor has is given back first."""
        ...


class CudaStatistics:
    """Of one CUDA device. Never run without one: not measured where none is at hand."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def reset_peak(self) -> None:
        # What loading has let go of is no part of a pass.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)

    def usage(self) -> DeviceUsage:
        torch.cuda.synchronize(self._device)
        # Reserved, not allocated: what the allocator could not fit together is taken as well.
        peak_bytes = torch.cuda.max_memory_reserved(self._device)
        torch.cuda.empty_cache()
        free_bytes, total_bytes = torch.cuda.mem_get_info(self._device)
        own_bytes = torch.cuda.memory_reserved(self._device)
        return DeviceUsage(total_bytes, total_bytes - free_bytes - own_bytes, peak_bytes)


def num_blocks_within(usage: DeviceUsage, fraction: float, block_bytes: int) -> int:
    """Blocks that fit into this share of all memory, beside everything else that is in use.

    Raises: TooLittleDeviceMemory.
    """
    room = int(usage.total_bytes * fraction) - usage.others_bytes - usage.peak_bytes
    if room < block_bytes:
        raise TooLittleDeviceMemory(usage, fraction, block_bytes)
    return room // block_bytes


def usage_of_largest_pass(
    model: Model,
    attention: AttentionBackend,
    layout: KvLayout,
    limits: PassLimits,
    statistics: DeviceStatistics,
    rank: int = 0,
) -> DeviceUsage:
    """Compute it once, and tell what the device had in use, without the pool that it took.

    The ranks of a worker compute it together, each with its own share.
    """
    statistics.reset_peak()
    pool_bytes = _compute(model, attention, layout, limits, is_first=rank == 0)
    usage = statistics.usage()
    return DeviceUsage(usage.total_bytes, usage.others_bytes, usage.peak_bytes - pool_bytes)


def _compute(
    model: Model,
    attention: AttentionBackend,
    layout: KvLayout,
    limits: PassLimits,
    *,
    is_first: bool,
) -> int:
    """As many sequences as may be, of as many tokens as may be; bytes of the pool for them."""
    num_seqs = min(limits.max_num_seqs, limits.max_num_batched_tokens)
    longest = model.config.max_position_embeddings
    lengths = [min(longest, length) for length in _shares(limits.max_num_batched_tokens, num_seqs)]
    num_blocks = [-(-length // layout.block_size) for length in lengths]
    pool = KvPool(layout, sum(num_blocks), model.device)
    runner = ModelRunner(model, pool, num_seqs, attention)
    first = 0
    for slot, (length, count) in enumerate(zip(lengths, num_blocks, strict=True)):
        blocks = tuple(range(first, first + count))
        runner.add(SequenceStart(slot, (0,) * length, length, SamplingParams(), blocks))
        first += count
    plan = StepPlan(tuple(ScheduledChunk(slot, 0, size, True) for slot, size in enumerate(lengths)))
    if is_first:
        runner.step(plan)
    else:
        runner.follow(plan)
    return sum(num_blocks) * layout.block_bytes


def _shares(total: int, parts: int) -> list[int]:
    """`total` as `parts` numbers that differ by one at most."""
    return [total * (part + 1) // parts - total * part // parts for part in range(parts)]
