"""The same as `kv_overlap`, but in a cluster of real processes: seconds to the first two tokens.

    python -m benchmarks.kv_overlap_live [--quick] [--rounds 9] [--out FILE.json]

A cluster for each way to overlap, first over shared memory, then over TCP. A model of random
weights with much KV for little work. In each round each cluster answers a prompt of each length, in
another order and one at a time, while the others have nothing to do. Ratios are taken within a
round. On a CPU the KV of a prompt takes a few percent of what computing it does, so this shows
whether a way loses, and hardly what it gains.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.record import Target, print_targets, spread, write_results
from engine.families_testing import FAMILIES
from engine.model_folder_testing import make_random_model_folder
from scheduling.push_pacing import KvOverlap
from tandemserve import AsyncClient, Delta

LENGTHS = (64, 512, 2048)
TRANSPORTS = ("shared_memory", "tcp")
# 16 KiB of KV a token.
MODEL = {
    **FAMILIES["llama"],
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 4096,
}
_WORKER = {"prefix_caching": "false", "num_blocks": "512", "drain_timeout_s": "2"}
_TIMEOUT_S = 240.0
MOST_RATIO = 1.05


@dataclass(frozen=True, slots=True)
class Heard:
    """By the caller, seconds since the call."""

    first_token_s: float
    second_token_s: float


# By transport, way and tokens of the prompt, a value a round.
Found = dict[str, dict[str, dict[int, list[Heard]]]]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kv_overlap_live",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one round: a look")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each")
    parser.add_argument("--threads", type=int, help="of each engine; default: all cores")
    parser.add_argument("--out", type=Path, help="write all figures there as JSON")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    found = asyncio.run(_measure(rounds, options.threads))
    targets = list(_targets(found))
    print_targets(targets)
    if options.out:
        figures = {
            "threads": options.threads or os.cpu_count(),
            "rows": {
                transport: {
                    way: {length: [asdict(one) for one in heard] for length, heard in rows.items()}
                    for way, rows in by_way.items()
                }
                for transport, by_way in found.items()
            },
        }
        write_results(options.out, figures, targets, options.quick)


def _targets(found: Found) -> list[Target]:
    targets = []
    for transport, by_way in found.items():
        for length in LENGTHS:
            for other in ("whole", "chunk"):
                pairs = zip(by_way["auto"][length], by_way[other][length], strict=True)
                ratios = tuple(a.second_token_s / b.second_token_s for a, b in pairs)
                what = f"second token, auto beside {other}: {length} tokens, {transport}"
                targets.append(Target(what, ratios, MOST_RATIO, is_limit=True))
            medians = ", ".join(
                f"{way} {spread([1e3 * one.second_token_s for one in rows[length]], 0)}"
                for way, rows in by_way.items()
            )
            print(f"second token of {length} tokens, {transport}, ms: {medians}")
            first = statistics.median(one.first_token_s for one in by_way["auto"][length])
            print(f"  first token by auto: {1e3 * first:.0f} ms")
    return targets


async def _measure(rounds: int, num_threads: int | None) -> Found:
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_random_model_folder(model, fields=MODEL)
        for transport in TRANSPORTS:
            found[transport] = await _measure_ways(model, transport, rounds, num_threads)
    return found


async def _measure_ways(
    model: Path, transport: str, rounds: int, num_threads: int | None
) -> dict[str, dict[int, list[Heard]]]:
    found: dict[str, dict[int, list[Heard]]] = {
        way.value: {length: [] for length in LENGTHS} for way in KvOverlap
    }
    rng = random.Random(1)
    async with contextlib.AsyncExitStack() as stack:
        clients = {
            way: await stack.enter_async_context(_cluster(model, transport, way, num_threads))
            for way in found
        }
        # The first rounds make passes and paths known.
        for number in range(-2, rounds):
            for length in LENGTHS:
                prompt = rng.choices(range(5, 300), k=length)
                for way in rng.sample(sorted(clients), len(clients)):
                    heard = await _ask(clients[way], prompt)
                    if number >= 0:
                        found[way][length].append(heard)
    return found


@contextlib.asynccontextmanager
async def _cluster(
    model: Path, transport: str, way: str, num_threads: int | None
) -> AsyncIterator[AsyncClient]:
    """Started by the launcher of `tandem up`."""
    worker = _WORKER | {"transports": transport}
    if num_threads is not None:
        worker["num_threads"] = str(num_threads)
    command = [
        *(sys.executable, "-m", "deploy.local", "up", "--json", "--port", "0"),
        *("--model", str(model), "--prefill", "1", "--decode", "1"),
        *(f"--prefill-worker.{name}={value}" for name, value in worker.items()),
        *(f"--decode-worker.{name}={value}" for name, value in worker.items()),
        f"--prefill-worker.kv_overlap={way}",
    ]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), _TIMEOUT_S)
        if not line:
            raise SystemExit(f"no cluster; see what it said above: {' '.join(command)}")
        async with AsyncClient(json.loads(line)["endpoint"]) as client:
            yield client
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), _TIMEOUT_S)


async def _ask(client: AsyncClient, prompt: list[int]) -> Heard:
    at_s: list[float] = []
    began_at_s = time.perf_counter()
    stream = client.stream(
        prompt, max_tokens=3, ignore_eos=True, temperature=0.0, timeout_s=_TIMEOUT_S
    )
    async with stream as events:
        async for event in events:
            if isinstance(event, Delta):
                at_s += [time.perf_counter() - began_at_s] * len(event.token_ids)
    return Heard(at_s[0], at_s[1])


if __name__ == "__main__":
    main()
