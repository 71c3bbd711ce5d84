"""What the device does at best: reading, copying, multiplying."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.gpu.engine_setup import EngineSetup

_REPEATS = 12
# In one measurement, so that ordering the kernels does not count.
_PER_REPEAT = 8


@dataclass(frozen=True, slots=True)
class Rates:
    """The fastest of a few repeats each, of plain torch operations."""

    # One sum over memory.
    read_bytes_per_s: float
    # One copy, bytes read and bytes written both counted.
    copy_bytes_per_s: float
    # One square product in the model's dtype, of random numbers: zeros are faster.
    flops: float

    @property
    def memory_bytes_per_s(self) -> float:
        """The higher one: the floor is then the stricter one."""
        return max(self.read_bytes_per_s, self.copy_bytes_per_s)


def measure_rates(setup: EngineSetup) -> Rates:
    """Takes a second or two; the memory is given back."""
    device, dtype = setup.model.device, setup.model.dtype
    num_bytes = 2 << 30 if setup.options.is_cuda else 32 << 20
    source = torch.ones(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    reading = _fastest(setup, source.sum)
    copying = _fastest(setup, partial(target.copy_, source))
    size = 8192 if setup.options.is_cuda else 256
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    multiplying = _fastest(setup, lambda: left @ right)
    return Rates(num_bytes / reading, 2 * num_bytes / copying, 2 * size**3 / multiplying)


def _fastest(setup: EngineSetup, call: Callable[[], object]) -> float:
    best = float("inf")
    call()
    for _ in range(2 if setup.options.is_quick else _REPEATS):
        started = setup.clock()
        for _ in range(_PER_REPEAT):
            call()
        best = min(best, (setup.clock() - started) / _PER_REPEAT)
    return best
