"""A run of our own cluster on this machine beside the simulator's figures for the same requests.

    python -m benchmarks.live_against_simulator [--quick] [--out FILE]
    python -m benchmarks.live_against_simulator --shape 0.1b --rate 2

For each set-up (a prefill and a decode worker; one mixed worker) a cluster is started, as `tandem
up` does it, with its router recorded and its workers telling of every pass. Two loads, drawn alike,
take turns, a few seconds each. One is for the fit: how long passes take, and messages between
processes. The other is compared: the simulator gets its requests, as they came to the router, under
the same policy, and is asked what would have happened; the router's own figures of each request
tell what did. Nothing is fitted to those.

Client, router, Redis and workers share the cores of this machine, which the simulator does not
know. They do so under both loads alike, so the fit holds what they cost each other at that rate;
it does not hold for another one. Do not use the machine for anything else meanwhile.

At last the recording is replayed: a fresh core must want what the router wanted, at every event.
"""

import argparse
import asyncio
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.decode_step import SHAPES
from benchmarks.iteration_times import random_folder
from benchmarks.live_run.cluster import TPOT_GOAL_S, TTFT_GOAL_S, Heard, cluster, drawn, send_all
from benchmarks.live_run.fitting import Fitted, fit
from benchmarks.live_run.recorded import Answered, RecordedRun, passes_of
from benchmarks.record import Target, print_targets, write_results
from engine.bundled import bundled_model_path
from engine.model_config import ModelConfig
from engine.model_folder import open_model_folder
from router.recording.file import Recording
from simulator.cluster_spec import ClusterSpec
from simulator.metrics.recorder import RunRecorder
from simulator.metrics.request_outcome import RequestOutcome
from simulator.replaying import Replayed, replay
from simulator.simulation import Scenario, Simulation
from simulator.slo import GapRule, RequestSlo

SPECS = (ClusterSpec(num_prefill=1, num_decode=1), ClusterSpec(num_mixed=1))
FIT, RUN = "fit", "run"
MAX_ERROR = 0.1
# The two loads take turns.
PIECE_S = 8.0
_SLO = RequestSlo("standard", TTFT_GOAL_S, gaps=((GapRule.MEAN, TPOT_GOAL_S),))
_SWAP_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class Comparison:
    """One set-up, both ways; seconds and requests per second, by figure."""

    spec: ClusterSpec
    num_requests: int
    live: Mapping[str, float]
    simulated: Mapping[str, float]
    # As callers measured; what lies between them and the router is not simulated.
    heard: Mapping[str, float]
    fitted: Fitted
    replayed: Replayed

    def error(self, figure: str) -> float:
        """Relative, above 0 where the simulator says more."""
        return self.simulated[figure] / self.live[figure] - 1

    def as_json(self) -> dict[str, Any]:
        fitted = self.fitted
        return {
            "cluster": self.spec.text,
            "num_requests": self.num_requests,
            "figures": {
                name: {
                    "live": round(self.live[name], 6),
                    "simulated": round(self.simulated[name], 6),
                    "error": round(self.error(name), 4),
                    "heard_by_callers": round(self.heard[name], 6),
                }
                for name in self.live
            },
            "fitted": {
                "batch_time": fitted.hardware.batch_time.model_dump(mode="json"),
                "link_ms": round(1e3 * fitted.link_s, 3),
                "ledger_ms": round(1e3 * fitted.ledger_s, 3),
                "push_ms": round(1e3 * fitted.hardware.transfer.latency_s, 3),
                "median_errors": {k: round(e.median, 4) for k, e in fitted.errors.items()},
                "num_passes": {kind: e.num_rows for kind, e in fitted.errors.items()},
            },
            "replay": {
                "num_events": self.replayed.num_events,
                "is_same": self.replayed.difference is None,
            },
        }


def main() -> None:
    args = _parser().parse_args()
    model = bundled_model_path() if args.shape == "bundled" else random_folder(args.shape)
    num_pieces = 1 if args.quick else args.pieces
    seconds = 2 * PIECE_S * num_pieces
    found = []
    for spec in SPECS:
        print(f"{spec.text}: {seconds:.0f} s of load, {args.rate:g} requests/s", flush=True)
        with tempfile.TemporaryDirectory(prefix="live-") as folder:
            found.append(compare(spec, model, args, num_pieces, Path(folder)))
    print(markdown(found))
    for one in found:
        print(told(one))
    targets = [
        Target(f"{name} of {one.spec.text}, error", (abs(one.error(name)),), MAX_ERROR, True)
        for one in found
        for name in one.live
    ]
    print_targets(targets)
    if args.out is not None:
        figures = {
            "model": args.shape,
            "policy": args.policy,
            "rate_rps": args.rate,
            "seconds": seconds,
            "runs": [one.as_json() for one in found],
        }
        write_results(args.out, figures, targets, args.quick)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.live_against_simulator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="one piece of each load: a look")
    add("--shape", choices=("bundled", *SHAPES), default="bundled", help="of the model")
    add("--policy", default="default", help="of router, workers and simulator")
    add("--rate", type=float, default=8.0, help="requests per second (default: 8)")
    add("--mean-tokens", type=int, default=64, help="of prompts and answers, about")
    about = f"of each load, of {PIECE_S:.0f} s (default: 4)"
    add("--pieces", type=int, default=4, help=about)
    add("--seed", type=int, default=1, help="of arrivals and lengths")
    add("--out", type=Path, metavar="FILE", help="write the figures there, as JSON")
    return parser


def compare(
    spec: ClusterSpec,
    model: Path,
    args: argparse.Namespace,
    num_pieces: int,
    folder: Path,
) -> Comparison:
    """Run a cluster, fit, simulate, replay."""
    names = [f"{name}.{piece}" for piece in range(num_pieces) for name in (FIT, RUN)]
    loads = [
        drawn(name, args.seed + number, args.rate, PIECE_S, args.mean_tokens)
        for number, name in enumerate(names)
    ]

    async def run() -> list[list[Heard]]:
        async with cluster(spec, model, args.policy, folder) as client:
            return await send_all(client, loads)

    heard = asyncio.run(run())
    (path,) = (folder / "records").iterdir()
    with path.open("rb") as file:
        recording = Recording(path, file)
        recorded = RecordedRun.of(recording)
    passes = {
        log.stem: passes_of(log)
        for log in (folder / "logs").glob("*.log")
        if not log.stem.startswith("router")
    }
    fitted = fit(recorded, FIT, passes, _kv_bytes_per_token(model))
    outcomes = simulate(recorded, fitted, spec, recording)
    with path.open("rb") as file:
        replayed = replay(Recording(path, file))
    live = recorded.requests(RUN)
    return Comparison(
        spec,
        len(live),
        figures(live),
        _simulated(outcomes, live),
        _heard([one for each in heard[1::2] for one in each], live),
        fitted,
        replayed,
    )


def simulate(
    recorded: RecordedRun, fitted: Fitted, spec: ClusterSpec, recording: Recording
) -> list[RequestOutcome]:
    """The second load in virtual time, by the very policy of the router."""
    workload = recorded.workload(RUN)
    outcomes: list[RequestOutcome] = []
    scenario = Scenario(
        workload,
        fitted.hardware,
        (_SLO,) * len(workload.requests),
        max(request.num_output_tokens for request in workload.requests),
        prefix_caching=True,
        swap_bytes=_SWAP_BYTES,
        are_lengths_allowed=True,
        link_latency_s=fitted.link_s,
        ledger_latency_s=fitted.ledger_s,
    )
    policy = recording.head.setup.new_policy()
    Simulation(scenario, policy, spec, RunRecorder(on_outcome=outcomes.append)).run()
    return outcomes


def figures(live: Sequence[Answered]) -> dict[str, float]:
    """By the router's clock."""
    return {
        "TTFT": statistics.fmean(one.ttft_s for one in live),
        "TPOT": statistics.fmean(one.tpot_s for one in live if one.tpot_s is not None),
        "JCT": statistics.fmean(one.total_s for one in live),
        "throughput": _throughput(
            (one.piece, one.arrived_at_s, one.arrived_at_s + one.total_s) for one in live
        ),
    }


def _simulated(outcomes: Sequence[RequestOutcome], live: Sequence[Answered]) -> dict[str, float]:
    return {
        "TTFT": statistics.fmean(one.ttft_s for one in outcomes if one.ttft_s is not None),
        "TPOT": statistics.fmean(one.gaps.mean for one in outcomes if one.gaps is not None),
        "JCT": statistics.fmean(one.jct_s for one in outcomes),
        "throughput": _throughput(
            (live[one.number].piece, one.arrived_at_s, one.ended_at_s) for one in outcomes
        ),
    }


def _throughput(answers: Iterable[tuple[int, float, float]]) -> float:
    """Requests per second, from the first arrival to the last end of each piece."""
    spans: dict[int, tuple[float, float]] = {}
    count = 0
    for piece, arrived_at_s, ended_at_s in answers:
        begin_s, end_s = spans.get(piece, (arrived_at_s, ended_at_s))
        spans[piece] = min(begin_s, arrived_at_s), max(end_s, ended_at_s)
        count += 1
    return count / sum(end_s - begin_s for begin_s, end_s in spans.values())


def _heard(heard: Sequence[Heard], live: Sequence[Answered]) -> dict[str, float]:
    return {
        "TTFT": statistics.fmean(one.ttft_s for one in heard),
        "TPOT": statistics.fmean(one.tpot_s for one in heard if one.tpot_s is not None),
        "JCT": statistics.fmean(one.total_s for one in heard),
        "throughput": figures(live)["throughput"],
    }


def markdown(found: Sequence[Comparison]) -> str:
    """A row for each set-up: live, simulated, difference."""
    names = list(found[0].live)
    lines = ["| cluster | requests | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 2)]
    for one in found:
        cells = [
            f"{_shown(name, one.live[name])}, simulated {_shown(name, one.simulated[name])} "
            f"({100 * one.error(name):+.1f} %)"
            for name in names
        ]
        lines.append(f"| {one.spec.text} | {one.num_requests} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def told(one: Comparison) -> str:
    """What was fitted, what callers heard, whether the recording replays."""
    errors = ", ".join(
        f"{kind} {100 * e.median:.0f} % ({e.num_rows})" for kind, e in one.fitted.errors.items()
    )
    heard = ", ".join(f"{name} {_shown(name, one.heard[name])}" for name in ("TTFT", "TPOT", "JCT"))
    difference = one.replayed.difference
    same = "the same actions" if difference is None else difference.line()
    return (
        f"{one.spec.text}: link {1e3 * one.fitted.link_s:.2f} ms, "
        f"ledger {1e3 * one.fitted.ledger_s:.2f} ms, "
        f"push {1e3 * one.fitted.hardware.transfer.latency_s:.2f} ms\n"
        f"  median error of passes, and their number: {errors}\n"
        f"  callers heard {heard}; replay of {one.replayed.num_events} events: {same}"
    )


def _shown(name: str, value: float) -> str:
    return f"{value:.2f}/s" if name == "throughput" else f"{1e3 * value:.2f} ms"


def _kv_bytes_per_token(model: Path) -> int:
    config = open_model_folder(model).config
    assert isinstance(config, ModelConfig)
    # Keys and values, of two bytes each.
    return 2 * 2 * config.num_layers * config.num_kv_heads * config.head_dim


if __name__ == "__main__":
    main()
