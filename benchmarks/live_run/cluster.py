"""A local cluster under a drawn load at real time: router recorded, workers logging passes."""

import asyncio
import json
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from simulator.cluster_spec import ClusterSpec
from simulator.traces.workload import TraceRequest, Workload
from tandemserve import AsyncClient, Delta

MAX_NUM_SEQS = 64
# Half of what the router lets lie before a prefill worker, as the simulator has it.
MAX_NUM_BATCHED_TOKENS = 512
BLOCK_SIZE = 16
NUM_BLOCKS = 4096
TTFT_GOAL_S, TPOT_GOAL_S = 5.0, 0.2
_TIMEOUT_S = 120.0
_START_TIMEOUT_S = 240.0
_STOP_TIMEOUT_S = 60.0
# Between two loads.
_PAUSE_S = 0.5
_MAX_PROMPT, _MAX_OUTPUT = 768, 256
# Ids of prompt tokens; none of them ends an answer.
_TOKEN_IDS = range(10, 300)


@dataclass(frozen=True, slots=True)
class Heard:
    """One answer, by the clock of the caller."""

    ttft_s: float
    tpot_s: float | None
    total_s: float


def drawn(name: str, seed: int, rate_rps: float, seconds: float, mean_tokens: int) -> Workload:
    """Arrivals at random at that rate, log-normal lengths of prompts and answers."""
    rng = random.Random(seed)
    requests: list[TraceRequest] = []
    at_s = 0.0
    while at_s < seconds:
        num_prompt = round(rng.lognormvariate(0.0, 0.7) * 1.2 * mean_tokens)
        num_output = round(rng.lognormvariate(0.0, 0.6) * 0.8 * mean_tokens)
        requests.append(
            TraceRequest(
                at_s,
                min(_MAX_PROMPT, max(8, num_prompt)),
                min(_MAX_OUTPUT, max(4, num_output)),
            )
        )
        at_s += rng.expovariate(rate_rps)
    return Workload(name, tuple(requests))


@asynccontextmanager
async def cluster(
    spec: ClusterSpec, model: Path, policy: str, folder: Path
) -> AsyncIterator[AsyncClient]:
    """Started by the launcher of `tandem up`. Workers have one thread each, so that they do not
    wait for each other's turn. What is left lies in `folder`: records/ and logs/."""
    worker = {
        "num_threads": 1,
        "block_size": BLOCK_SIZE,
        "num_blocks": NUM_BLOCKS,
        "max_num_seqs": MAX_NUM_SEQS,
        "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
        "log_level": "debug",
        "log_format": "json",
    }
    command = [
        *(sys.executable, "-m", "deploy.local", "up", "--json", "--port", "0"),
        *("--model", str(model), "--policy", policy, "--log-dir", str(folder / "logs")),
        *("--prefill", str(spec.num_prefill), "--decode", str(spec.num_decode)),
        *("--mixed", str(spec.num_mixed), f"--router.record_dir={folder / 'records'}"),
        *(f"--prefill-worker.{name}={value}" for name, value in worker.items()),
        *(f"--decode-worker.{name}={value}" for name, value in worker.items()),
    ]
    with (folder / "launcher.log").open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=errors
        )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), _START_TIMEOUT_S)
        if not line:
            raise SystemExit(f"no cluster: {(folder / 'launcher.log').read_text('utf-8')}")
        async with AsyncClient(json.loads(line)["endpoint"]) as client:
            yield client
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGINT)
        await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)


async def send_all(client: AsyncClient, workloads: Sequence[Workload]) -> list[list[Heard]]:
    """One load after the other; request ids are NAME-NUMBER. What callers heard of each."""
    # The very first requests find cold caches and unmapped memory.
    await _send(client, drawn("warm-up.0", 1, 20.0, 1.0, 32))
    heard = []
    for workload in workloads:
        heard.append(await _send(client, workload))
        await asyncio.sleep(_PAUSE_S)
    return heard


async def _send(client: AsyncClient, workload: Workload) -> list[Heard]:
    rng = random.Random(workload.name)
    prompts = [rng.choices(_TOKEN_IDS, k=one.num_prompt_tokens) for one in workload.requests]
    began_at_s = time.perf_counter()
    tasks = []
    for number, (one, prompt) in enumerate(zip(workload.requests, prompts, strict=True)):
        delay_s = began_at_s + one.arrival_s - time.perf_counter()
        await asyncio.sleep(max(0.0, delay_s))
        call = _ask(client, f"{workload.name}-{number}", prompt, one.num_output_tokens)
        tasks.append(asyncio.create_task(call))
    return await asyncio.gather(*tasks)


async def _ask(client: AsyncClient, request_id: str, prompt: list[int], num_output: int) -> Heard:
    began_at_s = time.perf_counter()
    at_s: list[float] = []
    stream = client.stream(
        prompt,
        max_tokens=num_output,
        ignore_eos=True,
        temperature=0.0,
        request_id=request_id,
        ttft_ms=1e3 * TTFT_GOAL_S,
        tpot_ms=1e3 * TPOT_GOAL_S,
        timeout_s=_TIMEOUT_S,
    )
    async with stream as events:
        async for event in events:
            if isinstance(event, Delta):
                at_s.append(time.perf_counter())
    gaps = num_output - 1
    return Heard(
        at_s[0] - began_at_s,
        (at_s[-1] - at_s[0]) / gaps if gaps else None,
        time.perf_counter() - began_at_s,
    )
