"""The loads, how one of them is run against a target, and what is kept of the repeats."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.router_load.prompts import Kind
from benchmarks.router_load.targets import Cores, Target

Figures = dict[str, float]
_LARGE_TIMES = 3
# loadc prints seconds in microseconds and calls some things otherwise.
_FROM_LOADC = {
    "requests_s": ("req_s", 1.0),
    "tokens_s": ("tok_s", 1.0),
    "requests_per_cpu_s": ("req_per_cpu_s", 1.0),
    "tokens_per_cpu_s": ("tok_per_cpu_s", 1.0),
    "latency_p50_ms": ("lat_p50_us", 1e-3),
    "latency_p99_ms": ("lat_p99_us", 1e-3),
    "ttft_p50_ms": ("ttft_p50_us", 1e-3),
    "ttft_p99_ms": ("ttft_p99_us", 1e-3),
    "gap_p50_ms": ("gap_p50_us", 1e-3),
    "gap_p99_ms": ("gap_p99_us", 1e-3),
    "router_cpu": ("cpu", 1.0),
    "client_cpu": ("cli_cpu", 1.0),
    "failed": ("err", 1.0),
}


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """One row of the table."""

    name: str
    num_calls: int
    num_tokens: int
    # Between two iterations of the fake workers.
    pace_ms: float = 0.0
    # Calls a second; 0: each is replaced as soon as it ends.
    rate: float = 0.0
    is_tokenised: bool = False
    # How loadc is told the same, where it can be.
    peer_mode: str | None = None
    # Of each large prompt; 0: the short text, or what `is_tokenised` says.
    prompt_bytes: int = 0
    prompt_kind: Kind = "ids"


LOADS = (
    LoadPlan("short, 1 at a time", 1, 1, peer_mode="plain"),
    LoadPlan("short, 16 at a time", 16, 1, peer_mode="plain"),
    LoadPlan("short, 64 at a time", 64, 1, peer_mode="plain"),
    LoadPlan("short, 64, token ids", 64, 1, is_tokenised=True),
    LoadPlan("64 streams, 1 ms", 64, 64, pace_ms=1.0, peer_mode="fast"),
    LoadPlan("64 streams, 10 ms", 64, 64, pace_ms=10.0, peer_mode="pace"),
    LoadPlan("256 streams, 10 ms", 256, 64, pace_ms=10.0, peer_mode="pace"),
    LoadPlan("1000 streams, 10 ms", 1000, 64, pace_ms=10.0, peer_mode="pace"),
    LoadPlan("256 long streams, 10 ms", 256, 512, pace_ms=10.0),
    LoadPlan("1000 long streams, 10 ms", 1000, 512, pace_ms=10.0),
    LoadPlan("prompt bytes, 8 of 400 KB", 8, 1, prompt_bytes=400_000),
)


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one load runs."""

    warm_s: float
    seconds: float
    repeats: int


def run_direct(target: Target, rate: float, timing: Timing, cores: Cores) -> list[Figures]:
    """Single tokens at that rate from the fake prefill worker itself; no router between."""
    command = [*_client("direct", target, timing), "--rate", str(rate)]
    return [json.loads(line) for line in _lines(command, cores, timing)]


def run_large_prompts(
    target: Target, plan: LoadPlan, timing: Timing, cores: Cores
) -> list[Figures]:
    """The repeats of a load whose prompts are large, longer: few of them end in a second."""
    timing = replace(timing, seconds=_LARGE_TIMES * timing.seconds)
    command = _client("large_prompts", target, timing)
    command += ["--calls", str(plan.num_calls), "--bytes", str(plan.prompt_bytes)]
    command += ["--kind", plan.prompt_kind]
    return [json.loads(line) for line in _lines(command, cores, timing)]


def run_tokenizer(
    model: Path, plan: LoadPlan, num_threads: int, timing: Timing, core: int | None
) -> list[Figures]:
    """The repeats of the tokenizer by itself, on the texts of a load and the router's core."""
    command = [sys.executable, "-m", "benchmarks.router_load.tokenizer_alone"]
    command += ["--model", str(model), "--threads", str(num_threads)]
    command += ["--bytes", str(plan.prompt_bytes), "--repeats", str(timing.repeats)]
    command += ["--seconds", str(timing.seconds)]
    return [json.loads(line) for line in _lines(command, Cores(None, core), timing)]


def _client(module: str, target: Target, timing: Timing) -> list[str]:
    command = [sys.executable, "-m", f"benchmarks.router_load.{module}"]
    command += ["--port", str(target.port), "--pid", str(target.pid)]
    command += ["--warm-s", str(timing.warm_s), "--seconds", str(timing.seconds)]
    return [*command, "--repeats", str(timing.repeats)]


def run_ours(target: Target, plan: LoadPlan, timing: Timing, cores: Cores) -> list[Figures]:
    """The repeats of one load against our router."""
    # Long streams would begin and end in step with one another for many rounds.
    ramp_s = plan.num_tokens * plan.pace_ms / 1e3 if plan.peer_mode is None else 0.0
    command = [sys.executable, "-m", "benchmarks.router_load.client"]
    command += ["--port", str(target.port), "--pid", str(target.pid)]
    command += ["--calls", str(plan.num_calls), "--tokens", str(plan.num_tokens)]
    command += ["--rate", str(plan.rate), "--warm-s", str(timing.warm_s + ramp_s)]
    command += ["--ramp-s", str(ramp_s)]
    command += ["--seconds", str(timing.seconds), "--repeats", str(timing.repeats)]
    command += ["--tokenised"] if plan.is_tokenised else []
    return [json.loads(line) for line in _lines(command, cores, timing)]


def run_peer(
    target: Target, plan: LoadPlan, timing: Timing, cores: Cores, tools: Path
) -> list[Figures]:
    """The same from the peers' client, which speaks HTTP; figures under our names."""
    assert plan.peer_mode is not None
    command = [str(tools / "loadc"), str(target.port), str(plan.num_calls), plan.peer_mode]
    command += [str(timing.warm_s), str(timing.seconds), str(timing.repeats), str(target.pid)]
    repeats: list[Figures] = []
    for line in _lines(command, cores, timing):
        seen = json.loads(line)
        figures = {ours: seen[theirs] * unit for ours, (theirs, unit) in _FROM_LOADC.items()}
        for what in ("request", "token"):
            rate = figures[f"{what}s_per_cpu_s"]
            figures[f"cpu_us_per_{what}"] = 1e6 / rate if rate else 0.0
        repeats.append(figures)
    return repeats


def summary(repeats: Sequence[Figures]) -> dict[str, dict[str, float]]:
    """Median, lowest and highest of each figure."""
    return {
        name: {
            "median": statistics.median(values),
            "min": min(values),
            "max": max(values),
        }
        for name in repeats[0]
        if (values := [figures[name] for figures in repeats])
    }


def _lines(command: Sequence[str], cores: Cores, timing: Timing) -> list[str]:
    pinned = command if cores.others is None else ("taskset", "-c", str(cores.others), *command)
    # Without QUICKACK a client waits 40 ms for each first token of a router that leaves Nagle on.
    environ = {**os.environ, "QUICKACK": "1"}
    limit_s = 60.0 + 2 * timing.seconds * timing.repeats
    done = subprocess.run(
        pinned, env=environ, capture_output=True, text=True, timeout=limit_s, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(pinned)}\n{done.stderr[-2000:]}")
    return done.stdout.splitlines()
