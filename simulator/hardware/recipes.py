"""Which table makes which description, and what is assumed where no table says it.

One function a file; `python -m simulator.hardware.fit` runs them all.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scheduling.batch_time_fit import MeasuredBatch
from simulator.hardware import composed, profiles
from simulator.hardware.description import FOLDER, CopyPart, KvPart, LimitsPart
from simulator.hardware.profiles import Phases

OUR_MEASUREMENTS = FOLDER / "cpu_measurements.csv"
BLOCK_SIZE = 16
# Of a data-sheet rate, what copies of megabytes reach.
_COPY_SHARE = 0.8
_COPY_LATENCY_S = 20e-6
# Of the recorded runs' prompts, in blocks that an earlier prompt had.
_REUSED_SHARE = 0.076
_SHARE_ASSUMED = "swap rate: 0.8 of the data sheet's PCIe rate for each GPU, 20 us latency"


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything of a description but what is fitted."""

    model: str
    gpus_per_worker: int
    source: tuple[str, ...]
    assumed: tuple[str, ...]
    phases: Phases
    kv: KvPart
    limits: LimitsPart
    transfer: CopyPart
    transfer_between_nodes: CopyPart
    swap: CopyPart
    # Whole passes of a recorded run: they add what the operators of `phases` lack.
    replayed: tuple[MeasuredBatch, ...] = ()
    has_communication: bool = False


def a100_opt13b(folder: Path) -> Prepared:
    """OPT-13B on one A100: the set-up of most published comparisons."""
    capacity = profiles.kv_capacity(
        folder, model="facebook/opt-13b", tensor_parallel="1", pipeline_parallel="1"
    )
    wanted = {"engine": "distserve", "model": "facebook/opt-13b", "tensor_parallel": "1"}
    return Prepared(
        model="facebook/opt-13b",
        gpus_per_worker=1,
        source=(
            "times and KV capacity: DistServe's simulator, profile of its own engine, "
            "github.com/LLMServe/DistServe 82831f16",
            "links: vidur, A100 DGX, github.com/microsoft/vidur 7d475133",
        ),
        assumed=(
            _SHARE_ASSUMED,
            "mixed passes: no measurement; weights are read once, attention adds up",
            "limits of an iteration",
        ),
        phases=profiles.fitted_formulas(folder, capacity, source="distserve-sim", **wanted),
        kv=_kv(folder, capacity, "opt-13b"),
        limits=LimitsPart(max_num_seqs=256, max_num_batched_tokens=2048),
        transfer=_link(folder, "a100_dgx", 2, 1),
        transfer_between_nodes=_link(folder, "a100_dgx", 1, 1),
        swap=_pcie(32, 1),
    )


def a100_llama70b_tp4(folder: Path) -> Prepared:
    """Llama-2-70B on four A100 80 GB."""
    return _llama70b(folder, "a100-80gb", "a100_dgx", pcie_gb_per_s=32)


def h100_llama70b_tp4(folder: Path) -> Prepared:
    """Llama-2-70B on four H100 80 GB."""
    return _llama70b(folder, "h100-80gb", "h100_dgx", pcie_gb_per_s=64)


def _llama70b(folder: Path, hardware: str, fabric: str, pcie_gb_per_s: float) -> Prepared:
    # 0.9 of four times 80 GiB, less 138 GB of weights and 4 GB of activations.
    capacity = int((0.9 * 4 * 80 * 2**30 - 138e9 - 4e9) / 327_680)
    phases = profiles.measured_iterations(
        folder,
        max_prompt_tokens=8192,
        source="splitwise",
        hardware=hardware,
        model="llama2-70b",
        tensor_parallel="4",
    )
    return Prepared(
        model="llama2-70b",
        gpus_per_worker=4,
        source=(
            "times: Splitwise, github.com/Mutinifni/splitwise-sim 8f99e7dc; an engine of 2023",
            "links: vidur, github.com/microsoft/vidur 7d475133",
        ),
        assumed=(
            _SHARE_ASSUMED,
            "KV capacity: 0.9 of the memory less weights and 4 GB",
            "mixed passes: no measurement; weights are read once, attention adds up",
            "16-bit weights and KV; limits of an iteration",
        ),
        phases=phases,
        kv=_kv(folder, capacity, "llama2-70b"),
        limits=LimitsPart(max_num_seqs=256, max_num_batched_tokens=4096),
        transfer=_link(folder, fabric, 2, 4),
        transfer_between_nodes=_link(folder, fabric, 1, 4),
        swap=_pcie(pcie_gb_per_s, 4),
    )


def h200_llama8b_fp8(folder: Path) -> Prepared:
    """Llama-3.1-8B in FP8 on one H200."""
    wanted = {"source": "dynamo-profiler", "hardware": "h200-141gb"}
    return Prepared(
        model="llama3.1-8b fp8",
        gpus_per_worker=1,
        source=(
            "times and KV capacity: profiler of github.com/yuekaizhang/dynamo e3619ce0",
            "links: vidur, H100 DGX, github.com/microsoft/vidur 7d475133",
        ),
        assumed=(
            _SHARE_ASSUMED,
            "15 ms of each measured prefill are the client's and taken off",
            "links of H100 nodes",
            "mixed passes: no measurement; weights are read once, attention adds up",
            "limits of an iteration",
        ),
        phases=profiles.measured_iterations(
            folder, max_prompt_tokens=16_384, request_overhead_ms=15.0, **wanted
        ),
        kv=_kv(folder, profiles.kv_capacity(folder, **wanted), "llama3.1-8b"),
        limits=LimitsPart(max_num_seqs=1024, max_num_batched_tokens=8192),
        transfer=_link(folder, "h100_dgx", 2, 1),
        transfer_between_nodes=_link(folder, "h100_dgx", 1, 1),
        swap=_pcie(64, 1),
    )


def rtx4090_llama8b(folder: Path) -> Prepared:
    """Llama-3.1-8B on one RTX 4090: little memory for KV."""
    return _workstation(
        folder,
        _Workstation("rtx4090", "Llama-3.1-8B", "llama3.1-8b", 1, 32, "rtx4090_llama8b_tp1", 32),
        LimitsPart(max_num_seqs=256, max_num_batched_tokens=2048),
        kv_capacity=41_408,
    )


def rtxpro6000_llama8b(folder: Path) -> Prepared:
    """Llama-3.1-8B on one RTX PRO 6000."""
    return _workstation(
        folder,
        _Workstation(
            "rtxpro6000", "Llama-3.1-8B", "llama3.1-8b", 1, 32, "rtxpro6000_llama8b_tp1", 64
        ),
        LimitsPart(max_num_seqs=128, max_num_batched_tokens=2048),
    )


def rtxpro6000_qwen32b_tp2(folder: Path) -> Prepared:
    """Qwen3-32B on two RTX PRO 6000."""
    return _workstation(
        folder,
        _Workstation("rtxpro6000", "Qwen3-32B", "qwen3-32b", 2, 64, "rtxpro6000_qwen32b_tp2", 64),
        LimitsPart(max_num_seqs=128, max_num_batched_tokens=2048),
    )


@dataclass(frozen=True, slots=True)
class _Workstation:
    hardware: str
    table_model: str
    geometry: str
    num_gpus: int
    num_layers: int
    run: str
    pcie_gb_per_s: float


def _workstation(
    folder: Path, of: _Workstation, limits: LimitsPart, kv_capacity: int | None = None
) -> Prepared:
    per_token = profiles.kv_bytes_per_token(folder, of.geometry)
    weights = {"llama3.1-8b": 16.1e9, "qwen3-32b": 65.5e9}[of.geometry]
    guessed = int((0.9 * of.num_gpus * 96 * 2**30 - weights - 4e9) / per_token)
    capacity_from = "KV capacity: told with the run" if kv_capacity else None
    wanted = {
        "hardware": of.hardware,
        "model": of.table_model,
        "tensor_parallel": str(of.num_gpus),
    }
    assumed = [_SHARE_ASSUMED, "between workers the same PCIe rate, between nodes 100 Gbit/s"]
    if kv_capacity is None:
        assumed.append("KV capacity: 0.9 of the memory less weights and 4 GB")
    return Prepared(
        model=of.geometry,
        gpus_per_worker=of.num_gpus,
        source=(
            "operators and recorded run: github.com/casys-kaist/LLMServingSim 5daddb21, vLLM 0.19",
            f"time beyond the operators: even seconds of the run {of.run}",
            *([capacity_from] if capacity_from else []),
        ),
        assumed=tuple(assumed),
        phases=composed.composed_iterations(folder, of.num_layers, 4096, **wanted),
        kv=KvPart(
            capacity_tokens=kv_capacity or guessed,
            bytes_per_token=per_token,
            block_size=BLOCK_SIZE,
        ),
        limits=limits,
        transfer=_pcie(of.pcie_gb_per_s, of.num_gpus),
        transfer_between_nodes=CopyPart(latency_s=50e-6, gb_per_s=12.5),
        swap=_pcie(of.pcie_gb_per_s, of.num_gpus),
        replayed=tuple(
            composed.replay(
                folder,
                of.run,
                limits.max_num_batched_tokens,
                limits.max_num_seqs,
                _REUSED_SHARE,
                kv_capacity,
            ).passes()
        ),
        has_communication=of.num_gpus > 1,
    )


def cpu(_folder: Path) -> Prepared:
    """This project's engine with 100 million parameters on one core of a Xeon with AMX."""
    return Prepared(
        model="0.1b",
        gpus_per_worker=1,
        source=(
            f"times: {OUR_MEASUREMENTS.name}, python -m benchmarks.iteration_times --shape 0.1b",
            "links: benchmarks/results/kv_push.json and kv_push_network.json, 256 blocks of 64 KiB",
        ),
        assumed=("host memory as fast as the same memcpy in pieces",),
        phases=profiles.measurements(OUR_MEASUREMENTS),
        # 256 MiB a worker.
        kv=KvPart(capacity_tokens=21_840, bytes_per_token=12_288, block_size=BLOCK_SIZE),
        limits=LimitsPart(max_num_seqs=64, max_num_batched_tokens=512),
        transfer=CopyPart(latency_s=45e-6, gb_per_s=12.2),
        transfer_between_nodes=CopyPart(latency_s=100e-6, gb_per_s=1.87),
        swap=CopyPart(latency_s=20e-6, gb_per_s=8.9),
    )


RECIPES: dict[str, Callable[[Path], Prepared]] = {
    recipe.__name__: recipe
    for recipe in (
        a100_opt13b,
        a100_llama70b_tp4,
        h100_llama70b_tp4,
        h200_llama8b_fp8,
        rtx4090_llama8b,
        rtxpro6000_llama8b,
        rtxpro6000_qwen32b_tp2,
        cpu,
    )
}


def _kv(folder: Path, capacity_tokens: int, geometry: str) -> KvPart:
    return KvPart(
        capacity_tokens=capacity_tokens,
        bytes_per_token=profiles.kv_bytes_per_token(folder, geometry),
        block_size=BLOCK_SIZE,
    )


def _link(folder: Path, fabric: str, devices_per_node: int, num_gpus: int) -> CopyPart:
    # Each GPU of a TP group sends its own heads.
    latency_s, bytes_per_s = profiles.link(folder, fabric, devices_per_node)
    return CopyPart(latency_s=latency_s, gb_per_s=round(num_gpus * bytes_per_s / 1e9, 2))


def _pcie(gb_per_s: float, num_gpus: int) -> CopyPart:
    return CopyPart(latency_s=_COPY_LATENCY_S, gb_per_s=_COPY_SHARE * gb_per_s * num_gpus)
