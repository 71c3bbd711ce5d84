"""How fast the simulator is, and how its cost grows with the cluster.

    python -m benchmarks.simulator_speed [--workers 16,100 --requests N,N] [--rate RPS]
        [--policy A,B] [--hardware NAME] [--trace FILE] [--out FILE] [--quick]

Each run is a steady load of so many requests a second and worker (`--rate`, where `--workers` says
which clusters). Without `--trace`, lengths are drawn: medians and means are those of published
conversations (prompts 1,020 and 1,155 tokens, answers 129 and 211). Seconds are of the processor,
of one process; reading a trace is not counted. `--out` is written after every run.
"""

import argparse
import gc
import math
import random
import resource
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.record import write_results
from scheduling.policies import POLICIES
from simulator.cluster_spec import cluster_for
from simulator.hardware.description import load_hardware
from simulator.metrics.recorder import RunRecorder
from simulator.metrics.run_record import RunRecord
from simulator.simulation import Scenario, Simulation
from simulator.slo import NO_SLO
from simulator.traces.reading import read_workload
from simulator.traces.workload import TraceRequest, Workload

# (workers, requests a second and worker, requests): as many as it takes for the load to be steady,
# and a million for the largest.
Size = tuple[int, float, int]
SIZES: tuple[Size, ...] = (
    (1, 2.0, 2_000),
    (16, 0.34, 10_000),
    (16, 1.0, 10_000),
    (16, 2.0, 20_000),
    (100, 2.0, 100_000),
    (1_000, 2.0, 1_000_000),
)
QUICK_SIZES: tuple[Size, ...] = ((1, 2.0, 100), (4, 2.0, 200))
# Median, mean, longest.
PROMPT_TOKENS, OUTPUT_TOKENS = (1_020, 1_155, 8_192), (129, 211, 1_024)


@dataclass(frozen=True, slots=True)
class Speed:
    """One run."""

    policy: str
    num_workers: int
    requests_per_s: float
    num_requests: int
    mean_running: float
    simulated_s: float
    cpu_s: float
    # Virtual seconds for one of the processor.
    times_real_time: float
    us_per_request: float
    us_per_iteration: float
    us_per_token: float
    max_rss_mb: float

    def line(self) -> str:
        """As it is printed."""
        return (
            f"{self.policy:<10} {self.num_workers:>6,} {self.requests_per_s:>8,.1f} "
            f"{self.num_requests:>10,} "
            f"{self.mean_running:>8.1f} {self.simulated_s:>9.0f} {self.cpu_s:>8.1f} "
            f"{self.times_real_time:>9.1f} {self.us_per_request:>9.0f} "
            f"{self.us_per_iteration:>9.1f} {self.us_per_token:>8.2f} {self.max_rss_mb:>7.0f}"
        )


HEADER = (
    "policy     workers    req/s   requests  running simulated    cpu s   x real time  us/req   "
    "us/iter  us/tok  RSS MB"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", help="numbers of workers")
    parser.add_argument("--requests", help="as many numbers of requests")
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second and worker")
    parser.add_argument("--policy", default="default")
    parser.add_argument("--hardware", default="h100")
    parser.add_argument("--max-untold", type=int, default=1024, help="1: step by step")
    parser.add_argument("--trace", type=Path, help="lengths from here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--quick", action="store_true", help="small, to see that it runs")
    args = parser.parse_args()
    print(HEADER)
    runs = []
    for policy in args.policy.split(","):
        for size in sizes_of(args):
            runs.append(asdict(measure(args, policy, size)))
            if args.out is not None:
                write_results(args.out, {"runs": runs}, (), args.quick)


def sizes_of(args: argparse.Namespace) -> Iterable[Size]:
    if args.quick:
        return QUICK_SIZES
    if args.workers is None:
        return SIZES
    workers = [int(number) for number in args.workers.split(",")]
    requests = [1_000 * number for number in workers]
    if args.requests is not None:
        requests = [int(number) for number in args.requests.split(",")]
    pairs = zip(workers, requests, strict=True)
    return [(number, args.rate, num_requests) for number, num_requests in pairs]


def measure(args: argparse.Namespace, policy: str, size: Size) -> Speed:
    """Run once; printed as well."""
    scene = scene_of(args, size)
    cluster = cluster_for(str(size[0]), is_disaggregated=POLICIES[policy].is_disaggregated)
    gc.collect()
    start_s = time.process_time()
    record = Simulation(scene, POLICIES[policy], cluster, RunRecorder()).run()
    cpu_s = time.process_time() - start_s
    speed = speed_of(policy, size, record, cpu_s)
    print(speed.line(), flush=True)
    return speed


def speed_of(policy: str, size: Size, record: RunRecord, cpu_s: float) -> Speed:
    num_workers, rate_rps, num_requests = size
    num_iterations = sum(role.num_iterations for role in record.roles)
    num_tokens = sum(role.num_decode_tokens for role in record.roles)
    return Speed(
        policy=policy,
        num_workers=num_workers,
        requests_per_s=num_workers * rate_rps,
        num_requests=num_requests,
        mean_running=max(role.mean_running / role.num_workers for role in record.roles),
        simulated_s=record.end_s,
        cpu_s=cpu_s,
        times_real_time=record.end_s / cpu_s,
        us_per_request=1e6 * cpu_s / num_requests,
        us_per_iteration=1e6 * cpu_s / num_iterations,
        us_per_token=1e6 * cpu_s / num_tokens,
        max_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


def scene_of(args: argparse.Namespace, size: Size) -> Scenario:
    num_workers, rate_rps, num_requests = size
    rng = random.Random(args.seed)
    lengths: list[tuple[int, int]] = []
    if args.trace is not None:
        requests = read_workload(args.trace, rate_rps=1.0, seed=args.seed).requests
        lengths = [(one.num_prompt_tokens, one.num_output_tokens) for one in requests]
    drawn = []
    now = 0.0
    for number in range(num_requests):
        now += rng.expovariate(rate_rps * num_workers)
        if lengths:
            num_prompt, num_output = lengths[number % len(lengths)]
        else:
            num_prompt, num_output = length_of(rng, *PROMPT_TOKENS), length_of(rng, *OUTPUT_TOKENS)
        drawn.append(TraceRequest(now, num_prompt, num_output))
    workload = Workload("steady", tuple(drawn))
    longest = max(one.num_output_tokens for one in drawn)
    max_tokens = 1 << (longest - 1).bit_length()
    hardware = load_hardware(args.hardware)
    return Scenario(
        workload,
        hardware,
        (NO_SLO,) * num_requests,
        max_tokens,
        max_untold_tokens=args.max_untold,
    )


def length_of(rng: random.Random, median: float, mean: float, longest: int) -> int:
    """Log-normal."""
    sigma = math.sqrt(2 * math.log(mean / median))
    return min(longest, max(1, round(rng.lognormvariate(math.log(median), sigma))))


if __name__ == "__main__":
    main()
