"""The arguments of the doctor, and one run of it."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout

from deploy.doctor.findings import findings_of
from deploy.doctor.machine import look
from deploy.doctor.paths import Path, measure
from deploy.doctor.places import Place, places_with, transports_at
from deploy.doctor.report import Report, as_json, print_report
from deploy.local.output import print_line, progress
from runtime.clock import MonotonicClock
from worker.transports import DEFAULT_ON_GPU, DEFAULT_ON_HOST

_ABOUT = """Measures every way that KV can take between two workers of this machine, each with two
processes, and says which one they would use, what is missing, and what to do about it. Takes a few
seconds for each way, and 128 MiB of memory, of each GPU too."""
_BEYOND = """It looks at this machine only. Towards another one a prefill worker measures the way
when it connects: see kv_path_chosen in its log. Exit codes: 0 KV has a way between all places,
1 it has none between some or workers do not start with what was named, 2 wrong usage."""


def main(argv: Sequence[str]) -> int:
    """Run it; the exit code."""
    options = _parser().parse_args(argv)
    paths: list[Path] = []
    with _libraries_on_stderr():
        facts = look(options.kv_host)
        for source, target in places_with(facts.num_gpus):
            for name in _names(source, options.transports):
                progress(f"trying {name} from {source} to {target}")
                paths.append(measure(source, target, name, options.kv_host, MonotonicClock()))
    tried = options.transports or tuple(dict.fromkeys((*DEFAULT_ON_GPU, *DEFAULT_ON_HOST)))
    findings = tuple(findings_of(facts))
    named = bool(options.transports)
    report = Report(tuple(paths), findings, tried, options.min_kv_bytes_per_s, named)
    if options.json:
        print_line(json.dumps(as_json(report), separators=(",", ":")))
    else:
        print_report(report)
    return 0 if report.is_healthy else 1


@contextmanager
def _libraries_on_stderr() -> Iterator[None]:
    """Libraries that say something on stdout (NIXL does), here or in a process that is started,
    would say it into the answer."""
    sys.stdout.flush()
    answers = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(answers, 1)
        os.close(answers)


def _names(source: Place, wanted: Sequence[str]) -> list[str]:
    known = transports_at(source)
    return [name for name in wanted if name in known] if wanted else list(known)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("tandem doctor", description=_ABOUT, epilog=_BEYOND)
    parser.add_argument(
        "--transports",
        type=_comma_list,
        default=(),
        metavar="A,B",
        help="only these, in this order of preference, as the setting of workers; default: all are "
        "measured, and what workers try by default is used",
    )
    parser.add_argument(
        "--kv-host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address for ways over the network, as kv_host of a worker; default: 127.0.0.1",
    )
    parser.add_argument(
        "--min-kv-bytes-per-s",
        type=float,
        default=0.0,
        metavar="N",
        help="what is slower is not used, as with the setting of a prefill worker; default: 0",
    )
    parser.add_argument("--json", action="store_true", help="one JSON value on stdout")
    return parser


def _comma_list(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    known = {*transports_at(Place()), *transports_at(Place(0))}
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"transport {name!r} is unknown; use some of {', '.join(sorted(known))}"
            )
    return names
