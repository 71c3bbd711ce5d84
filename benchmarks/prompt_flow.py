"""How many bytes of prompts one router process takes in, beside what they cost by themselves.

    python -m benchmarks.prompt_flow [--quick]

Eight calls at a time offer large prompts, as text and as token ids, to a router with fake workers;
each asks for one token. Beside it, in the same run and on the same core: the tokenizer alone on
the same text, with as many threads as the router has, and a grpc.aio server that takes the same
messages and parses nothing. The router has a core for itself, clients and all else share the other.
Writes all repeats to benchmarks/results/, or where --out says.
"""

import argparse
import os
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from benchmarks.record import spread, write_results
from benchmarks.router_load.loads import (
    Figures,
    LoadPlan,
    Timing,
    run_large_prompts,
    run_tokenizer,
)
from benchmarks.router_load.targets import (
    Cores,
    RouterOptions,
    bare_server,
    long_context,
    our_router,
)
from engine.bundled import bundled_model_path

QUICK = Timing(warm_s=0.5, seconds=0.5, repeats=1)
FULL = Timing(warm_s=1.0, seconds=2.0, repeats=1)
NUM_CALLS = 8
# What is compared, and with what.
ROUTER_TEXT, ROUTER_IDS = "router, text", "router, token ids"
GRPC_TEXT, GRPC_IDS, TOKENIZER = "grpc.aio alone, text", "grpc.aio alone, ids", "tokenizer alone"
LIMITS = ((ROUTER_TEXT, TOKENIZER), (ROUTER_TEXT, GRPC_TEXT), (ROUTER_IDS, GRPC_IDS))
Rounds = dict[str, list[Figures]]


def measure(arguments: argparse.Namespace) -> Rounds:
    """All rounds; within one, everything is measured in the same minute."""
    timing = QUICK if arguments.quick else FULL
    cores = Cores(None, None) if arguments.unpinned else Cores()
    threads = ("--tokenizer-threads", str(arguments.threads))
    options = RouterOptions(bundled_model_path(), cores, threads)
    text = LoadPlan("text", NUM_CALLS, 1, prompt_bytes=arguments.bytes, prompt_kind="text")
    ids = LoadPlan("ids", NUM_CALLS, 1, prompt_bytes=arguments.bytes)
    found: Rounds = defaultdict(list)
    for number in range(1 if arguments.quick else arguments.rounds):
        print(f"round {number + 1}", flush=True)
        with long_context(options) as roomy, our_router(roomy, 0.0) as router:
            found[ROUTER_TEXT] += run_large_prompts(router, text, timing, cores)
            found[ROUTER_IDS] += run_large_prompts(router, ids, timing, cores)
        with bare_server(cores) as bare:
            found[GRPC_TEXT] += run_large_prompts(bare, text, timing, cores)
            found[GRPC_IDS] += run_large_prompts(bare, ids, timing, cores)
        model = bundled_model_path()
        found[TOKENIZER] += run_tokenizer(model, text, arguments.threads, timing, cores.router)
    return found


def show(rounds: Rounds) -> None:
    """Two tables in Markdown: what was measured, and how near it comes to its limits."""
    print("\n| | MB/s | CPU s/MB |\n|---|---|---|")
    for name, repeats in rounds.items():
        print(f"| {name} | {_spread(repeats, 'prompt_mb_s', 1)} | {_cpu(repeats)} |")
    print("\n| MB/s over its limit, within a round | |\n|---|---|")
    for name, limit in LIMITS:
        print(f"| {name}, over {limit} | {spread(shares(rounds, name, limit), 3)} |")


def shares(rounds: Rounds, name: str, limit: str) -> list[float]:
    """Of the limit, by round."""
    pairs = zip(rounds[name], rounds[limit], strict=True)
    return [one["prompt_mb_s"] / other["prompt_mb_s"] for one, other in pairs]


def _cpu(repeats: Sequence[Figures]) -> str:
    return _spread(repeats, "cpu_s_per_prompt_mb", 4)


def _spread(repeats: Sequence[Figures], name: str, digits: int) -> str:
    return spread([figures[name] for figures in repeats], digits)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prompt_flow",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one short round: a look")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bytes", type=int, default=400_000, help="of each prompt")
    parser.add_argument("--threads", type=int, default=2, help="that tokenise")
    parser.add_argument("--unpinned", action="store_true", help="leave the cores to the kernel")
    default = Path("benchmarks/results/prompt_flow.json")
    parser.add_argument("--out", type=Path, default=default, help="all repeats, as JSON")
    arguments = parser.parse_args()
    load_before = os.getloadavg()
    rounds = measure(arguments)
    show(rounds)
    figures = {
        "load_1min_before_and_after": [load_before[0], os.getloadavg()[0]],
        "prompt_bytes": arguments.bytes,
        "tokenizer_threads": arguments.threads,
        "rounds": rounds,
        "share_of_limit": {
            f"{name}, over {limit}": statistics.median(shares(rounds, name, limit))
            for name, limit in LIMITS
        },
    }
    write_results(arguments.out, figures, (), arguments.quick)


if __name__ == "__main__":
    main()
