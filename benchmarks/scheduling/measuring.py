"""Measures one cell from the names of its pair and what is tried on it."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.scheduling.cell_log import Entry
from benchmarks.scheduling.cell_run import (
    COMMON_FACTOR,
    NUM_WORKERS,
    CpuClock,
    common_of,
    goodput_of,
)
from benchmarks.scheduling.cells import Pair
from benchmarks.scheduling.load_piece import (
    fitting,
    hopeless_share_of,
    load_of,
    num_wanted,
    piece_of,
    read_trace,
    sustained_scale,
)
from scheduling.policy import Policy
from simulator.hardware.description import Hardware, load_hardware
from simulator.load import DEFAULT_SWAP_GIB, Load
from simulator.rate_search import RateSearch
from simulator.traces.workload import Workload

# Of the rate that keeps everybody busy without any waiting.
_FIRST_PROBE = 0.5
# Rates at which a piece arrives in less are not tried: all of it would be there at once.
_LEAST_SPAN_S = 20.0


@dataclass(frozen=True, slots=True)
class Subject:
    """What is tried on a pair: a policy, or one with something taken away."""

    name: str
    policy: Policy
    # False: nobody reuses what prompts share.
    prefix_caching: bool = True


@dataclass(frozen=True, slots=True)
class CellSettings:
    """How all cells of a file are measured."""

    seed: int = 0
    # Small pieces and few probes: does the program run.
    is_quick: bool = False
    # Of the KV memory that the hardware has, what workers get.
    kv_share: float = 1.0
    # As `tandem simulate --slo` takes it; None: the published goals that suit the load.
    slo: str | None = None
    # Host memory of each worker for KV that makes room.
    swap_gib: float = DEFAULT_SWAP_GIB

    def as_json(self) -> dict[str, Any]:
        """What has its default is left out, but for what every file says."""
        kept: dict[str, Any] = {"seed": self.seed, "quick": self.is_quick}
        usual = CellSettings()
        for name in ("kv_share", "slo", "swap_gib"):
            if getattr(self, name) != getattr(usual, name):
                kept[name] = getattr(self, name)
        return kept

    @property
    def request_limits(self) -> tuple[int, int]:
        """Of a piece: the least, the most."""
        return (80, 80) if self.is_quick else (300, 1500)

    def search(self, start: float, max_factor: float) -> RateSearch:
        """For the highest rate at which 90 % meet their goals."""
        tolerance, max_probes = (0.2, 8) if self.is_quick else (0.05, 12)
        return RateSearch(0.9, start, tolerance, max_probes, max_factor)


def scaled(hardware: Hardware, kv_share: float) -> Hardware:
    """The same machine with less KV memory, whole blocks of it and at least one."""
    kv = hardware.kv
    num_blocks = max(1, int(kv_share * kv.capacity_tokens) // kv.block_size)
    less = kv.model_copy(update={"capacity_tokens": num_blocks * kv.block_size})
    return hardware.model_copy(update={"kv": less}) if kv_share != 1.0 else hardware


class Measuring:
    """Keeps the trace and the load that it was asked about last."""

    def __init__(self, folder: Path, settings: CellSettings) -> None:
        self._folder = folder
        self._settings = settings
        # One at a time: some traces hold millions of names.
        self._workload_by_trace: dict[str, Workload] = {}
        self._load_by_pair: dict[Pair, tuple[Load | None, Mapping[str, Any]]] = {}

    def cell(self, pair: Pair, subject: Subject, reference: Entry | None) -> dict[str, Any]:
        """What its line of the log says; `reference` is that of the reference, where it is known.

        Raises: TraceError, HardwareUnreadable, SloTextInvalid.
        """
        if pair not in self._load_by_pair:
            self._load_by_pair = {pair: self._load(pair)}
        load, about = self._load_by_pair[pair]
        if load is None:
            return {**about, "goodput": None, "common": None}
        if not subject.prefix_caching:
            load = replace(load, prefix_caching=False)
        return {**about, **self._measured(load, subject.policy, reference)}

    def _load(self, pair: Pair) -> tuple[Load | None, Mapping[str, Any]]:
        name = pair.trace.stem
        seed, (least, most) = self._settings.seed, self._settings.request_limits
        if name not in self._workload_by_trace:
            self._workload_by_trace = {name: read_trace(self._folder, pair.trace, seed)}
        whole = self._workload_by_trace[name]
        hardware = scaled(load_hardware(pair.hardware), self._settings.kv_share)
        num_requests = least
        while True:
            piece = piece_of(whole, num_requests, seed)
            workload, num_left_out = fitting(piece, hardware.kv.capacity_tokens)
            if num_left_out == len(piece.requests):
                return None, {"requests": 0, "too_long": num_left_out}
            load = load_of(workload, hardware, seed, self._settings.slo, self._settings.swap_gib)
            wanted = min(num_wanted(load, NUM_WORKERS, least, most), len(whole.requests))
            # Twice at most: the longer piece may ask for more or less again.
            if wanted <= num_requests or num_requests > least:
                break
            num_requests = wanted
        return load, _about(load, num_left_out)

    def _measured(self, load: Load, policy: Policy, reference: Entry | None) -> dict[str, Any]:
        clock = CpuClock()
        start = _FIRST_PROBE * sustained_scale(load, NUM_WORKERS)
        if reference is not None and reference["goodput"] is not None:
            start = reference["goodput"]["rate_scale"]
        most = max(2.0, load.workload.span_s / _LEAST_SPAN_S / start)
        goodput = goodput_of(load, clock, policy, self._settings.search(start, most))
        common = reference["common_scale"] if reference is not None else None
        if common is None:
            common = start if goodput is None else COMMON_FACTOR * goodput["rate_scale"]
        return {
            "goodput": goodput,
            "common_scale": common,
            "common": common_of(load, clock, policy, common),
        }


def _about(load: Load, num_left_out: int) -> dict[str, Any]:
    requests = load.workload.requests
    return {
        "requests": len(requests),
        "too_long": num_left_out,
        "slo": load.plan.text,
        "slo_source": load.plan.source,
        # Of the requests: these cannot be in time, whoever orders how.
        "hopeless_share": round(hopeless_share_of(load), 4),
        "max_tokens": load.max_tokens,
        "prompt_tokens_mean": round(statistics.fmean(r.num_prompt_tokens for r in requests)),
        "output_tokens_mean": round(statistics.fmean(r.num_output_tokens for r in requests)),
    }
