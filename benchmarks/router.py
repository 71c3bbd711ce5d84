"""What one router process carries, with fake workers, beside vllm-router and smg.

    python -m benchmarks.router [--quick]
    python -m benchmarks.router --peer-venv DIR --peer-tools DIR

The first needs nothing that is not installed with Tandem and leaves the peers out.

The router has a core for itself, its real ledger, and fake workers that speak the real protocol;
clients and all else share the other core. Peers run in blocks between ours, under the same shape
of load on the same core: `pip install vllm-router==0.1.17 sglang-router==0.3.2` in an environment
of their own, and a folder with two programs. `fakeoai BASEPORT N` answers on N ports as OpenAI's
API does; `loadc PORT CALLS plain|fast|pace WARM_S SECONDS REPEATS PID` prints one line of JSON a
repeat. They come as one file of C each beside the project and not with it; where you have them:
`gcc -O2 -w -o DIR/fakeoai fakeoai.c && gcc -O2 -w -o DIR/loadc loadc.c`.
Writes all repeats to benchmarks/results/, or where --out says.
"""

import argparse
import os
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.record import print_targets, write_results
from benchmarks.router_load.comparison import (
    ALONE,
    HALF_LOAD,
    added_ms,
    ratio_lines,
    ratios_as_json,
    targets_of,
)
from benchmarks.router_load.footprint import cluster_footprint, queue_memory
from benchmarks.router_load.loads import (
    LOADS,
    Figures,
    LoadPlan,
    Timing,
    run_direct,
    run_large_prompts,
    run_ours,
    run_peer,
    summary,
)
from benchmarks.router_load.targets import (
    PEERS,
    Cores,
    RouterOptions,
    fake_backends,
    long_context,
    no_router,
    our_router,
    peer_router,
)
from engine.bundled import bundled_model_path

QUICK = Timing(warm_s=0.5, seconds=1.0, repeats=1)
FULL = Timing(warm_s=0.8, seconds=2.0, repeats=1)
Repeats = dict[str, dict[str, list[Figures]]]
# Column, name of the figure, digits.
COLUMNS = (
    ("requests/s", "requests_s", 0),
    ("CPU us/req", "cpu_us_per_request", 0),
    ("tokens/s", "tokens_s", 0),
    ("tok/CPU-s", "tokens_per_cpu_s", 0),
    ("CPU us/tok", "cpu_us_per_token", 1),
    ("CPU", "router_cpu", 2),
    ("client", "client_cpu", 2),
    ("latency p50", "latency_p50_ms", 1),
    ("p99 ms", "latency_p99_ms", 1),
    ("TTFT p50", "ttft_p50_ms", 1),
    ("p99 ms", "ttft_p99_ms", 1),
    ("gap p50", "gap_p50_ms", 1),
    ("p99 ms", "gap_p99_ms", 1),
    ("failed", "failed", 0),
)
# The same for large prompts.
PROMPT_COLUMNS = (
    ("MB/s", "prompt_mb_s", 1),
    ("CPU s/MB", "cpu_s_per_prompt_mb", 4),
    ("CPU", "router_cpu", 2),
)


def measure_ours(
    options: RouterOptions, plans: list[LoadPlan], timing: Timing
) -> dict[str, list[Figures]]:
    """One block of ours: a fresh router for each pace of the workers."""
    found: dict[str, list[Figures]] = {}
    most = 0.0
    for large in (plan for plan in plans if plan.prompt_bytes):
        with long_context(options) as roomy, our_router(roomy, 0.0) as target:
            found[large.name] = run_large_prompts(target, large, timing, options.cores)
    plans = [plan for plan in plans if not plan.prompt_bytes]
    for pace_ms in sorted({plan.pace_ms for plan in plans}):
        with our_router(options, pace_ms) as target:
            for plan in plans:
                if plan.pace_ms == pace_ms:
                    found[plan.name] = run_ours(target, plan, timing, options.cores)
            most = max(
                (f["requests_s"] for n in found for f in found[n] if "short" in n), default=0
            )
            if pace_ms == 0 and most:
                half = replace(LOADS[2], name=HALF_LOAD, rate=most / 2)
                found[half.name] = run_ours(target, half, timing, options.cores)
    if HALF_LOAD in found:
        with no_router(options) as alone:
            found[ALONE] = run_direct(alone, most / 2, timing, options.cores)
    return found


def measure_peer(
    name: str, arguments: argparse.Namespace, plans: list[LoadPlan], timing: Timing
) -> dict[str, list[Figures]]:
    """One block of a peer."""
    cores = _cores(arguments)
    with (
        fake_backends(arguments.peer_tools, cores),
        peer_router(name, arguments.peer_venv, cores) as target,
    ):
        return {
            plan.name: run_peer(target, plan, timing, cores, arguments.peer_tools)
            for plan in plans
            if plan.peer_mode is not None
        }


def measure(arguments: argparse.Namespace) -> tuple[Repeats, Repeats]:
    """All blocks, ours and the peers' in turn."""
    timing = QUICK if arguments.quick else FULL
    plans = [plan for plan in LOADS if not arguments.load or arguments.load in plan.name]
    ours: Repeats = defaultdict(lambda: defaultdict(list))
    peers: Repeats = defaultdict(lambda: defaultdict(list))
    loops = ("uvloop", "asyncio") if arguments.both_loops else ("uvloop",)
    names = [name for name in PEERS if arguments.peer_venv is not None]
    for block in range(1 if arguments.quick else arguments.blocks):
        for loop in loops:
            print(f"block {block + 1}: tandem, {loop}", flush=True)
            options = _options(arguments, has_uvloop=loop == "uvloop")
            for plan, repeats in measure_ours(options, plans, timing).items():
                ours[f"tandem, {loop}"][plan] += repeats
        for name in names:
            print(f"block {block + 1}: {name}", flush=True)
            for plan, repeats in measure_peer(name, arguments, plans, timing).items():
                peers[name][plan] += repeats
    return ours, peers


def footprint(arguments: argparse.Namespace) -> dict[str, float]:
    """Memory and start-up."""
    options = _options(arguments)
    num_queued = 1000 if arguments.quick else 10_000
    found = queue_memory(options, num_queued)
    with our_router(options, 0.0) as target:
        found["router_first_token_s"] = target.first_token_s
    return found | cluster_footprint()


def show(results: Repeats) -> None:
    """The table: medians, and the spread of what is compared."""
    width = max(len(plan) for rows in results.values() for plan in rows)
    for target, rows in results.items():
        print(f"\n{target}")
        print(" " * width + "".join(f"{title:>12}" for title, _, _ in COLUMNS))
        for plan, repeats in rows.items():
            found = summary(repeats)
            if "prompt_mb_s" in found:
                both = ((title, found[name], d) for title, name, d in PROMPT_COLUMNS)
                cells = "".join(
                    f"   {title} {f['median']:.{d}f} ({f['min']:.{d}f}-{f['max']:.{d}f})"
                    for title, f, d in both
                )
                print(f"{plan:<{width}}{cells}")
                continue
            cells = "".join(f"{found[name]['median']:>12.{d}f}" for _, name, d in COLUMNS)
            key = "requests_s" if plan.startswith("short") else "tokens_per_cpu_s"
            print(f"{plan:<{width}}{cells}   {key} {found[key]['min']:.0f}-{found[key]['max']:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one block of one second: a look")
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--load", default="", help="only loads with this in their name")
    parser.add_argument("--peer-venv", type=Path, help="where the peers are installed")
    parser.add_argument("--peer-tools", type=Path, help="folder with fakeoai and loadc")
    parser.add_argument("--both-loops", action="store_true", help="also without uvloop")
    parser.add_argument("--unpinned", action="store_true", help="leave the cores to the kernel")
    parser.add_argument("--no-footprint", action="store_true", help="no memory, no start-up")
    parser.add_argument("--router", nargs="*", default=[], help="more arguments of our router")
    default = Path("benchmarks/results/router.json")
    parser.add_argument("--out", type=Path, default=default, help="all repeats, as JSON")
    arguments = parser.parse_args()
    if (arguments.peer_venv is None) != (arguments.peer_tools is None):
        parser.error("--peer-venv and --peer-tools go together")
    began_at_s = time.perf_counter()
    load_before = os.getloadavg()
    # First: it is short, and a long run should not end in its failure.
    sizes = {} if arguments.no_footprint else footprint(arguments)
    ours, peers = measure(arguments)
    results = {**ours, **peers}
    show(results)
    print("\n".join(ratio_lines(ours, peers)))
    for name, value in sizes.items():
        print(f"{name:<40}{value:>10.2f}")
    targets = [one for name, rows in ours.items() for one in targets_of(name, rows)]
    print_targets(targets)
    report: dict[str, Any] = {
        "load_1min_before_and_after": [load_before[0], os.getloadavg()[0]],
        "seconds": round(time.perf_counter() - began_at_s, 1),
        "footprint": sizes,
        "ratios_beside_peers": ratios_as_json(ours, peers),
        "added_latency_ms": {
            name: {q: added_ms(rows, f"latency_{q}_ms") for q in ("p50", "p99")}
            for name, rows in ours.items()
        },
        "results": {
            target: {
                plan: {"summary": summary(repeats), "repeats": repeats}
                for plan, repeats in rows.items()
            }
            for target, rows in results.items()
        },
    }
    write_results(arguments.out, report, targets, arguments.quick)


def _cores(arguments: argparse.Namespace) -> Cores:
    return Cores(None, None) if arguments.unpinned else Cores()


def _options(arguments: argparse.Namespace, has_uvloop: bool = True) -> RouterOptions:
    extra = tuple(f"--{argument}" for argument in arguments.router)
    return RouterOptions(bundled_model_path(), _cores(arguments), extra, has_uvloop)


if __name__ == "__main__":
    main()
