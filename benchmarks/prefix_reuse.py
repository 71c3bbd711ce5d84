"""What reuse of prefixes saves, and what it costs: TTFT by shared share, microseconds of the cores.

Run: python benchmarks/prefix_reuse.py [--num-prompt 1000] [--requests 12] [--cores-only]
TTFT is that of one client at a time against one prefill and one decode worker of the bundled model;
every answer is compared with the same request under a salt of its own, which shares nothing.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from decode_worker.core import DecodeCore
from decode_worker.settings import DecodeSettings
from prefill_worker.core import PrefillCore, PrefillSettings
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import AdmitGeneration, CancelTask, SequenceSpec, StartDecode, StartPrefill
from scheduling.sampling import SamplingParams, StopParams
from scheduling.worker_events import (
    CommandArrived,
    KvArrived,
    SampledOutput,
    SessionId,
    StepFinished,
)
from tandemserve import AsyncClient, Completion

BLOCK_SIZE = 16
SESSION = SessionId(1)
SHARES = (0.0, 0.5, 0.9)
NUM_STEPS = 160


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-prompt", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cores-only", action="store_true")
    args = parser.parse_args()
    for num_running in (32, 256):
        runs = [[_decode_iterations(num_running, on) for on in (False, True)] for _ in range(5)]
        for is_on in (False, True):
            # In turns, and the best of each: whatever else the machine does only adds.
            median_us, mean_us = min(run[is_on] for run in runs)
            print(
                f"decode core, {num_running} running, prefix caching {_word(is_on)}: "
                f"{median_us:.0f} us an iteration (median), {mean_us:.0f} us (mean)"
            )
    for is_on in (False, True):
        _prefill_start(args.num_prompt, is_on)
    if not args.cores_only:
        asyncio.run(_end_to_end(args))


# --- the cores --------------------------------------------------------------------------------


def _decode_iterations(num_running: int, is_on: bool) -> tuple[float, float]:
    """Median and mean microseconds of CPU time of an iteration, without an engine."""
    num_blocks = num_running * 80
    export = KvExport("none", "a", num_blocks, 64, WorkerId("d"), Incarnation(1), "h")
    settings = DecodeSettings(num_blocks, BLOCK_SIZE, num_running, prefix_caching=is_on)
    core = DecodeCore(settings, export)
    for number in range(num_running):
        task_id, prompt = TaskId(f"{number}"), tuple(range(number, number + 500))
        spec = SequenceSpec(prompt, (), SamplingParams(), StopParams(10_000))
        core.handle(CommandArrived(SESSION, AdmitGeneration(task_id, spec, 60, 32, task_id, "p")))
        core.handle(CommandArrived(SESSION, StartDecode(task_id, (1,))))
        core.handle(KvArrived(task_id))
    core.plan(0.0)
    took_s: list[float] = []
    for number in range(NUM_STEPS):
        began_at_s = time.thread_time()
        _, plan = core.plan(0.0)
        assert plan is not None
        planned_at_s = time.thread_time()
        outputs = tuple(SampledOutput(chunk.slot, number, "") for chunk in plan.chunks)
        sampled_at_s = time.thread_time()
        core.handle(StepFinished(outputs))
        took_s.append(time.thread_time() - sampled_at_s + planned_at_s - began_at_s)
    return statistics.median(took_s) * 1e6, statistics.mean(took_s) * 1e6


def _prefill_start(num_prompt: int, is_on: bool, num_prompts: int = 50) -> None:
    """From command to first plan, for prompts that are all the same."""
    settings = PrefillSettings(10_000, BLOCK_SIZE, 64, 10**6, prefix_caching=is_on)
    core = PrefillCore(settings)
    spec = SequenceSpec(tuple(range(num_prompt)), (), SamplingParams(), StopParams(5))
    took_s: list[float] = []
    for number in range(num_prompts):
        task_id = TaskId(f"{number}")
        began_at_s = time.thread_time()
        core.handle(CommandArrived(SESSION, StartPrefill(task_id, spec)))
        _, plan = core.plan(0.0)
        took_s.append(time.thread_time() - began_at_s)
        assert plan is not None
        core.handle(StepFinished(tuple(SampledOutput(c.slot, 1, "") for c in plan.chunks)))
        core.handle(CommandArrived(SESSION, CancelTask(task_id, "done")))
    print(
        f"prefill core, prompt of {num_prompt} tokens, prefix caching {_word(is_on)}: "
        f"{statistics.median(took_s) * 1e6:.0f} us to start it (median)"
    )


def _word(is_on: bool) -> str:
    return "on" if is_on else "off"


# --- end to end -------------------------------------------------------------------------------


@contextmanager
def _cluster() -> Iterator[str]:
    """One worker of each kind, as a user starts them; the address of the router."""
    command = (sys.executable, "-m", "deploy.local", "up", "--json", "--port", "0")
    threads = [f"--{role}-worker.num_threads=1" for role in ("prefill", "decode")]
    process = subprocess.Popen(
        (*command, "--decode", "1", *threads), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["endpoint"]
    finally:
        process.terminate()
        process.wait(60.0)


async def _end_to_end(args: argparse.Namespace) -> None:
    rng = random.Random(args.seed)
    print(f"seed {args.seed}, prompts of {args.num_prompt} tokens, {args.requests} each")
    with _cluster() as endpoint:
        async with AsyncClient(endpoint) as client:
            await _ask(client, _draw(rng, args.num_prompt), "warm-up")
            baseline_ms = 0.0
            for share in SHARES:
                ttft_ms, cached = await _with_share(client, rng, share, args)
                baseline_ms = baseline_ms or ttft_ms
                print(
                    f"{share:4.0%} shared: TTFT {ttft_ms:7.1f} ms (median), {cached:6.1%} of the "
                    f"prompt cached, {baseline_ms / ttft_ms:5.2f} times as fast"
                )


async def _with_share(
    client: AsyncClient, rng: random.Random, share: float, args: argparse.Namespace
) -> tuple[float, float]:
    num_shared = int(args.num_prompt * share)
    shared = _draw(rng, num_shared)
    if shared:
        await _ask(client, shared)
    ttft_ms: list[float] = []
    cached: list[float] = []
    for number in range(args.requests):
        prompt = shared + _draw(rng, args.num_prompt - num_shared)
        answer = await _ask(client, prompt)
        alone = await _ask(client, prompt, salt=f"{share} {number}")
        assert answer.token_ids == alone.token_ids, "reuse changed the tokens"
        ttft_ms.append(answer.timings.ttft_ms)
        cached.append(answer.usage.num_cached_tokens / args.num_prompt)
    return statistics.median(ttft_ms), statistics.mean(cached)


async def _ask(client: AsyncClient, prompt: tuple[int, ...], salt: str = "") -> Completion:
    return await client.generate(
        prompt, max_tokens=8, temperature=0.0, ignore_eos=True, cache_salt=salt
    )


def _draw(rng: random.Random, num_tokens: int) -> tuple[int, ...]:
    return tuple(rng.choices(range(300, 2000), k=num_tokens))


if __name__ == "__main__":
    main()
