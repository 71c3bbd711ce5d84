"""What a GPU is to show, in one command of a few minutes.

    python -m benchmarks.gpu --out FILE.json [--parts decode,push] [--minutes 8]
    python -m benchmarks.gpu --device cpu --shape 2m --quick --out FILE.json

decode: steps beside the time to read weights and KV once; prefill: beside the rate of products;
push: KV between two processes beside a plain copy; layout: orders and blocks of the KV store;
prefix: answers that begin alike, whose beginning is read once, or for each; profile: times of
passes as tables for `simulator.hardware.fit`, written beside FILE.json; cluster: a whole cluster
under load. FILE.json is written anew after every part. On the CPU it shows that the program runs;
of the figures only the ratios of `layout` and `prefix` mean anything there.
"""

import argparse
import platform
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.driver import SHARES, PartRun, keep_files, run_part, seconds_for
from benchmarks.gpu.part import PARTS, add_options
from benchmarks.record import facts, machine, write_content
from runtime.clock import MonotonicClock

_PACKAGES = ("torch", "triton", "flashinfer-python", "transformers", "nvidia-nccl-cu13")


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device: nothing was measured; --device cpu shows whether the program runs")
        return 1
    clock = MonotonicClock()
    ends_at_s = clock.now() + 60.0 * args.minutes
    names = args.parts.split(",")
    runs: list[PartRun] = []
    with tempfile.TemporaryDirectory(prefix="gpu-parts-") as folder:
        for index, name in enumerate(names):
            print(f"-- {name}", flush=True)
            seconds = seconds_for(name, names[index + 1 :], ends_at_s - clock.now())
            run = run_part(name, _handed_on(args), Path(folder), seconds, clock)
            print(f"-- {name}: {run.outcome} in {run.seconds:.0f} s {run.why[-300:]}", flush=True)
            runs.append(run)
            if args.out:
                write_content(args.out, content_of(args, runs, names))
                keep_files(run, Path(folder), args.out)
    return 0 if all(run.outcome == "ran" for run in runs) else 1


def content_of(
    args: argparse.Namespace, runs: Sequence[PartRun], names: Sequence[str]
) -> dict[str, Any]:
    """Of the file of results, while parts are still to come as well."""
    done = {run.name: run.as_json() for run in runs}
    waiting = {name: {"outcome": "not run"} for name in (*names, *SHARES) if name not in done}
    return {
        **facts(args.quick),
        "machine": f"{_device_name(args.device)}, {machine()}",
        "versions": _versions(),
        "parts": {**done, **waiting},
        "targets": [one for run in runs for one in run.journal.get("targets", ())],
    }


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, help="write all figures there as JSON")
    parser.add_argument("--parts", default=",".join(SHARES), help="in this order, by commas")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    add_options(parser)
    args = parser.parse_args(argv)
    unknown = [name for name in args.parts.split(",") if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; parts are {', '.join(PARTS)}")
    return args


def _handed_on(args: argparse.Namespace) -> list[str]:
    words = ["--shape", args.shape, "--device", args.device, "--attention", args.attention]
    words += ["--lengths", args.lengths] if args.lengths else []
    return [*words, "--quick"] if args.quick else words


def _device_name(device: str) -> str:
    if device == "cpu":
        return "no GPU"
    total = torch.cuda.get_device_properties(0).total_memory
    return f"{torch.cuda.get_device_name(0)} {total / 2**30:.0f} GiB"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    raise SystemExit(main())
