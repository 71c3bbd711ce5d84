"""The simulator beside recorded runs of a real engine: TTFT, time per token, time to drain.

Run: python -m benchmarks.simulator_replays PROFILES [--out FILE]
PROFILES holds engine_replays.csv(.gz) and engine_replay_prompts.jsonl(.gz). The engine is vLLM
0.19: its scheduler is our policy `sarathi` (arrival order, prompts in chunks beside running
answers, KV block by block, the last that arrived makes room) on one mixed worker; prompts share
what the record says that they share. Nothing is fitted here; the hardware's own description tells
what was.
"""

import argparse
import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.record import Target, print_targets, write_results
from scheduling.policies import POLICIES
from simulator.cluster_spec import ClusterSpec
from simulator.hardware.description import load_hardware
from simulator.hardware.profiles import Row, select
from simulator.metrics.quantiles import quantile
from simulator.metrics.recorder import RunRecorder
from simulator.metrics.request_outcome import RequestOutcome
from simulator.simulation import Scenario, Simulation
from simulator.slo import NO_SLO
from simulator.traces.workload import TraceRequest, Workload

_BLOCK_TOKENS = 16
# Longer than any answer of the runs, which were forced to their length.
_MAX_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Recorded:
    """A run of the record, and what it ran on."""

    run: str
    hardware: str
    # Whose tokenizer cut the prompts.
    prompts: str


RUNS = (
    Recorded("rtx4090_llama8b_tp1", "rtx4090_llama8b", "llama8b"),
    Recorded("rtxpro6000_llama8b_tp1", "rtxpro6000_llama8b", "llama8b"),
    Recorded("rtxpro6000_qwen32b_tp2", "rtxpro6000_qwen32b_tp2", "qwen32b"),
)
# Of the same record, and not simulated: a mixture of experts on two engines side by side, of which
# there is no table of operators.
LEFT_OUT = ("rtxpro6000_qwen30ba3b_dp2ep",)


@dataclass(frozen=True, slots=True)
class Latencies:
    """What is compared; seconds, a value for each request, of tpot for those with two tokens."""

    ttft: tuple[float, ...]
    tpot: tuple[float, ...]
    drain_s: float

    def figures(self) -> dict[str, float]:
        """By name, in seconds."""
        named = {"TTFT": sorted(self.ttft), "TPOT": sorted(self.tpot)}
        figures = {}
        for name, values in named.items():
            figures[f"{name} mean"] = sum(values) / len(values)
            figures[f"{name} p50"] = quantile(values, 0.5)
            figures[f"{name} p99"] = quantile(values, 0.99)
        return {**figures, "drain": self.drain_s}


@dataclass(frozen=True, slots=True)
class Comparison:
    """One run, both ways."""

    run: str
    real: Mapping[str, float]
    simulated: Mapping[str, float]
    # Of the simulated run; the record does not tell.
    num_preemptions: int
    num_cached_tokens: int

    def error(self, figure: str) -> float:
        """Relative, above 0 where the simulator is slower."""
        return self.simulated[figure] / self.real[figure] - 1

    def as_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "seconds": {
                name: {
                    "real": round(self.real[name], 6),
                    "simulated": round(self.simulated[name], 6),
                    "error": round(self.error(name), 4),
                }
                for name in self.real
            },
            "preemptions_simulated": self.num_preemptions,
            "cached_tokens_simulated": self.num_cached_tokens,
        }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("profiles", type=Path, metavar="PROFILES")
    parser.add_argument("--out", type=Path, metavar="FILE")
    args = parser.parse_args()
    found = [compare(args.profiles, recorded) for recorded in RUNS]
    print(markdown(found))
    print(f"not simulated: {', '.join(LEFT_OUT)}")
    targets = [
        Target(f"{figure} of {one.run}, error", (abs(one.error(figure)),), 0.1, is_limit=True)
        for one in found
        for figure in ("TTFT mean", "TPOT mean", "drain")
    ]
    print_targets(targets)
    if args.out is not None:
        figures = {"runs": [one.as_json() for one in found], "left_out": list(LEFT_OUT)}
        write_results(args.out, figures, targets, is_quick=False)


def compare(folder: Path, recorded: Recorded) -> Comparison:
    """Simulate one run of the record. Raises: ProfileMissing."""
    rows = select(folder, "engine_replays", run=recorded.run)
    rows.sort(key=lambda row: (float(row["arrival_s"]), int(row["request"])))
    outcomes = _simulated(recorded, _workload(recorded.run, rows, _pieces(folder, recorded)))
    simulated = Latencies(
        tuple(one.ttft_s for one in outcomes if one.ttft_s is not None),
        tuple(one.gaps.mean for one in outcomes if one.gaps is not None),
        max(one.ended_at_s for one in outcomes),
    )
    return Comparison(
        recorded.run,
        _real(rows).figures(),
        simulated.figures(),
        sum(one.num_preemptions for one in outcomes),
        sum(one.num_cached_tokens for one in outcomes),
    )


def _simulated(recorded: Recorded, workload: Workload) -> list[RequestOutcome]:
    outcomes: list[RequestOutcome] = []
    recorder = RunRecorder(on_outcome=outcomes.append)
    scenario = Scenario(
        workload,
        load_hardware(recorded.hardware),
        (NO_SLO,) * len(workload.requests),
        _MAX_TOKENS,
        prefix_caching=True,
    )
    Simulation(scenario, POLICIES["vllm"], ClusterSpec(num_mixed=1), recorder).run()
    return outcomes


def _real(rows: Iterable[Row]) -> Latencies:
    ttft, tpot, ends, arrivals = [], [], [], []
    for row in rows:
        arrival_s, first_s = float(row["arrival_s"]), float(row["first_token_s"])
        last_s, num_tokens = float(row["last_token_s"]), int(row["output_tokens"])
        arrivals.append(arrival_s)
        ends.append(last_s)
        ttft.append(first_s - arrival_s)
        if num_tokens > 1:
            tpot.append((last_s - first_s) / (num_tokens - 1))
    return Latencies(tuple(ttft), tuple(tpot), max(ends) - min(arrivals))


def _workload(name: str, rows: list[Row], pieces: Mapping[int, tuple[int, ...]]) -> Workload:
    first_s = float(rows[0]["arrival_s"])
    return Workload(
        name,
        tuple(
            TraceRequest(
                float(row["arrival_s"]) - first_s,
                int(row["prompt_tokens"]),
                int(row["output_tokens"]),
                prefix_ids=pieces[int(row["request"])],
                prefix_block_tokens=_BLOCK_TOKENS,
            )
            for row in rows
        ),
    )


def _pieces(folder: Path, recorded: Recorded) -> dict[int, tuple[int, ...]]:
    """Names of the prompts' blocks, by request."""
    packed, plain = (folder / f"engine_replay_prompts.jsonl{end}" for end in (".gz", ""))
    found = {}
    with gzip.open(packed, "rt") if packed.is_file() else plain.open() as lines:
        for line in lines:
            entry = json.loads(line)
            if entry["prompts"] == recorded.prompts:
                runs = (range(first, first + count) for first, count in entry["hash_runs"])
                found[int(entry["request"])] = tuple(name for run in runs for name in run)
    return found


def markdown(found: Iterable[Comparison]) -> str:
    """A row for each run: real, simulated, difference."""
    found = list(found)
    figures = list(found[0].real)
    lines = [
        "| run | " + " | ".join(figures) + " | preemptions |",
        "|---|" + "---|" * (len(figures) + 1),
    ]
    for one in found:
        cells = [
            f"{_seconds(one.real[name])} / {_seconds(one.simulated[name])} "
            f"({100 * one.error(name):+.1f} %)"
            for name in figures
        ]
        lines.append(f"| `{one.run}` | " + " | ".join(cells) + f" | {one.num_preemptions} |")
    return "\n".join(lines)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1000 * value:.1f} ms"


if __name__ == "__main__":
    main()
