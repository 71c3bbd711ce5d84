"""Cells of `benchmarks.scheduling`, checked field by field, and put together by how they were
measured."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.report.fields import Field, Results
from benchmarks.scheduling.cells import HARDWARE, in_order
from benchmarks.scheduling.ratios import Entry, pairs_of, policies_of

_PARTS = ("mean", "p50", "p90", "p99", "max")
_DISTRIBUTIONS = ("ttft_ms", "tbt_ms", "tpot_ms", "jct_s")
_NUMBERS = (
    "offered_rps",
    "throughput_rps",
    "slo_attainment",
    "preemptions",
    "swaps",
    "kvc_allocated_share",
    "kvc_written_share",
    "cached_prompt_share",
)


@dataclass(frozen=True, slots=True)
class CellGroup:
    """Cells of a file that were measured in one way."""

    results: Results
    settings: Mapping[str, Any]
    entries: tuple[Entry, ...]

    @property
    def policies(self) -> list[str]:
        """What says most first."""
        return [name for name in in_order(policies_of(self.entries)) if name in self._names]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Trace and hardware: hardware by hardware, traces in the order of their measurement."""
        found = pairs_of(self.entries)
        known = [*HARDWARE, *sorted({pair[1] for pair in found} - set(HARDWARE))]
        return sorted(found, key=lambda pair: known.index(pair[1]))

    @property
    def title(self) -> str:
        """How it was measured, beyond what is usual."""
        told = {name: one for name, one in self.settings.items() if name != "quick"}
        return ", ".join(f"{name.replace('_', ' ')} {one}" for name, one in told.items())

    def of_pair(self, trace: str, hardware: str) -> dict[str, Entry]:
        """By policy, in the order of `policies`."""
        found = {
            entry["policy"]: entry
            for entry in self.entries
            if (entry["trace"], entry["hardware"]) == (trace, hardware)
        }
        return {name: found[name] for name in self.policies if name in found}

    @property
    def _names(self) -> frozenset[str]:
        return frozenset(entry["policy"] for entry in self.entries)


def cell_groups(results: Results, *, is_ablation: bool = False) -> list[CellGroup]:
    """In the order of their first cells. Raises: ResultsUnreadable."""
    by_settings: dict[str, list[Entry]] = {}
    for cell in results.content.at("cells").elements():
        entry = _checked(cell, is_ablation=is_ablation)
        by_settings.setdefault(json.dumps(entry["settings"], sort_keys=True), []).append(entry)
    return [
        CellGroup(results, same[0]["settings"], _last_of_each(same))
        for same in by_settings.values()
    ]


def _last_of_each(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """What was measured again counts once."""
    found = {(one["trace"], one["hardware"], one["policy"]): one for one in entries}
    return tuple(found.values())


def _checked(cell: Field, *, is_ablation: bool) -> Entry:
    for name in ("trace", "hardware", "policy"):
        cell.at(name).text()
    cell.at("settings").items()
    cell.at("settings").at("quick").flag()
    for name in ("requests", "too_long"):
        cell.at(name).number()
    _check_goodput(cell.get("goodput"))
    common = cell.get("common")
    if common is None:
        entry: Entry = {**cell.value, "goodput": None, "common": None}
        return entry
    cell.at("slo").text()
    hopeless = cell.get("hopeless_share")
    if hopeless is not None:
        hopeless.number()
    _check_common(common)
    if is_ablation:
        common.at("cpu_us_per_request").number()
        common.at("phases_s").items()
        for _, role in common.at("roles").items():
            for name in ("mean_running", "iteration_tokens"):
                role.at(name).number()
    return {"goodput": None, **cell.value}


def _check_goodput(goodput: Field | None) -> None:
    if goodput is None:
        return
    for name in ("rate_scale", "rps", "rps_per_gpu"):
        goodput.at(name).number()
    for name in ("cluster", "ending"):
        goodput.at(name).text()
    for probe in goodput.at("probes").elements():
        if len(probe.numbers()) != 2:
            raise probe.wrong("a rate and an attainment")


def _check_common(common: Field) -> None:
    common.at("cluster").text()
    for name in _NUMBERS:
        common.at(name).number()
    for name in _DISTRIBUTIONS:
        parts = [common.at(name).at(part) for part in _PARTS]
        # Where there was nothing to measure, all of them are null.
        if any(part.value is not None for part in parts):
            for part in parts:
                part.number()
