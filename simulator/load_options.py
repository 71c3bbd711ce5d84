"""The options by which both commands are told what to simulate."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scheduling.policies import POLICIES
from scheduling.policy import Policy, Sharing
from scheduling.policy_settings import PolicyInvalid, joined, policy_of
from simulator.hardware.description import known_names, load_hardware
from simulator.load import DEFAULT_SWAP_GIB, Load, LoadSettings
from simulator.traces.reading import read_workload
from simulator.traces.samples import AZURE_2023_CONV, sample_named
from simulator.usage import Parser, UsageError, count, file_to_write, folder_to_write, gib


def add_load_options(parser: Parser) -> None:
    """All but rates, policies and clusters."""
    add = parser.add_argument
    about = f"requests, as in docs/traces.md (default: the sample {AZURE_2023_CONV.name})"
    add("--trace", type=Path, metavar="FILE|NAME", help=about)
    about = f"what a worker is: h100, h200, a100, a JSON file, or one of {', '.join(known_names())}"
    add("--hardware", default="h100", metavar="NAME|FILE", help=about)
    about = "goals, such as ttft=1s,tpot=100ms (default: published ones that fit the load)"
    add("--slo", default="published", metavar="GOALS", help=about)
    add("--seed", type=int, default=0, metavar="N", help="of everything that is drawn (default: 0)")
    add("--max-requests", type=count, metavar="N", help="only the first so many")
    about = "what callers allow their answers (default: the longest answer, as a power of two)"
    add("--max-tokens", type=count, metavar="N", help=about)
    about = "tokens of a KV block (default: the hardware's; 64 where long prompts share beginnings)"
    add("--block-size", type=count, metavar="N", help=about)
    about = f"host memory of a worker for KV that makes room (default: {DEFAULT_SWAP_GIB})"
    add("--swap-gib", type=gib, default=DEFAULT_SWAP_GIB, metavar="GIB", help=about)
    about = "let workers compute what prompts share every time"
    add("--no-prefix-caching", action="store_true", help=about)
    about = "choose otherwise in every policy, such as victims=last-arrived; may be repeated"
    add("--set", action="append", default=[], metavar="FIELD=VALUE,...", help=about)
    about = "let no prompt begin in blocks that running answers need only later"
    add("--no-lending", action="store_true", help=about)


def add_output_options(parser: Parser, about_report: str) -> None:
    """Where results go besides stdout."""
    add = parser.add_argument
    add("--json", type=file_to_write, metavar="FILE", help="write all figures there")
    add("--report", type=folder_to_write, metavar="DIR", help=about_report)
    about = "write how long the simulation itself took there, as JSON"
    add("--wall-times", type=file_to_write, metavar="FILE", help=about)
    add("--quiet", action="store_true", help="no progress, no notes on stderr")
    about = "so many runs, or searches, side by side; each needs its own memory (default: 1)"
    add("--jobs", type=count, default=1, metavar="N", help=about)


def policies_of(text: str, changes: Sequence[str] = (), *, is_lending: bool = True) -> list[Policy]:
    """The named policies, each once, with all that is changed in every one of them.

    Without lending, of those that lend blocks only whether they may is changed as well.
    Raises: UsageError.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise UsageError(f"--policy names none; use some of {', '.join(POLICIES)}")
    pairs = [pair for each in changes for pair in each.split(",") if pair.strip()]
    try:
        policies = [policy_of(joined(name, pairs)) for name in names]
    except PolicyInvalid as error:
        raise UsageError(str(error)) from error
    return policies if is_lending else [replace(p, sharing=Sharing.NONE) for p in policies]


def load_of(options: argparse.Namespace, rate_rps: float | None) -> Load:
    """Read what the options name; notes go to stderr. Raises: TraceError, HardwareUnreadable."""
    hardware = load_hardware(options.hardware)
    sample = sample_named(options.trace)
    if sample is not None and not options.quiet:
        whose = "no --trace: this is" if options.trace is None else f"{sample.name} is"
        tell([f"{whose} {sample.about}"])
    workload = read_workload(
        options.trace if sample is None else sample.path,
        rate_rps=rate_rps,
        max_requests=options.max_requests,
        seed=options.seed,
    )
    settings = LoadSettings(
        slo=options.slo,
        seed=options.seed,
        max_tokens=options.max_tokens,
        block_size=options.block_size,
        prefix_caching=not options.no_prefix_caching,
        swap_gib=options.swap_gib,
    )
    if settings.block_size is not None and settings.block_size > hardware.kv.capacity_tokens:
        raise UsageError(
            f"--block-size {settings.block_size}: more than the KV of {hardware.name}, "
            f"{hardware.kv.capacity_tokens} tokens"
        )
    load = Load.of(workload, hardware, settings)
    if not options.quiet:
        tell(load.notes)
        if load.plan.source:
            tell([f"goals {load.plan.text} are those of {load.plan.source}; --slo sets others"])
    return load


def tell(notes: Sequence[str]) -> None:
    """Notes for whoever looks on."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
