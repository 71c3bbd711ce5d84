"""The arguments of the doctor, and one run of it."""

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import NoReturn

from deploy.doctor.findings import findings_of
from deploy.doctor.machine import look
from deploy.doctor.paths import Path, measure
from deploy.doctor.places import Place, places_with, transports_at
from deploy.doctor.report import Report, as_json, print_report
from deploy.local.output import print_line, progress, say_error
from runtime.clock import MonotonicClock
from worker.transport_names import DEFAULT_ON_GPU, DEFAULT_ON_HOST

_ABOUT = """Measures every way that KV can take between two workers of this machine, each with two
processes, and says which one they would use, what is missing, and what to do about it. Takes a few
seconds for each way, and 128 MiB of memory, of each GPU too."""
_BEYOND = """It looks at this machine only. Towards another one a prefill worker measures the way
when it connects: see kv_path_chosen in its log. Exit codes: 0 KV has a way between all places,
1 it has none between some or workers do not start with what was named, 2 wrong usage,
130 interrupted."""


HEALTHY, UNHEALTHY, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


class UsageError(ValueError):
    """The command line asks for something that cannot be."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def main(argv: Sequence[str]) -> int:
    """Run it; the exit code. What is wrong with the arguments is one line on stderr."""
    try:
        return _run(argv)
    except UsageError as error:
        say_error(str(error))
        return WRONG_USAGE
    except KeyboardInterrupt:
        progress("interrupted; what was measured is not told")
        return INTERRUPTED


def _run(argv: Sequence[str]) -> int:
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
    return HEALTHY if report.is_healthy else UNHEALTHY


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
    parser = _Parser("tandem doctor", description=_ABOUT, epilog=_BEYOND, allow_abbrev=False)
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
        type=_bytes_per_s,
        default=0.0,
        metavar="N",
        help="what is slower is not used, as with the setting of a prefill worker; default: 0",
    )
    parser.add_argument("--json", action="store_true", help="one JSON value on stdout")
    return parser


def _bytes_per_s(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes, such as 1e9 for 1 GB/s")
    return value


def _comma_list(text: str) -> tuple[str, ...]:
    # One that is named twice is tried once, as by a worker.
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise argparse.ArgumentTypeError("no transport is named; leave it out for all")
    known = {*transports_at(Place()), *transports_at(Place(0))}
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(
                f"transport {name!r} is unknown; use some of {', '.join(sorted(known))}"
            )
    return names
