"""What was found, for people and for programs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table

from deploy.doctor.findings import Finding
from deploy.doctor.paths import Path, used_path

_WIDTH_WITHOUT_TERMINAL = 160


@dataclass(frozen=True, slots=True)
class Report:
    """One run. The paths of a pair of places stand in the order in which workers try them."""

    paths: tuple[Path, ...]
    findings: tuple[Finding, ...]
    # What workers try; the others were measured for those who would name them.
    tried: tuple[str, ...]
    min_bytes_per_s: float = 0.0
    # `tried` is what someone named: workers start with all of it or not at all.
    are_named: bool = False

    @property
    def pairs(self) -> list[tuple[str, str]]:
        return list(dict.fromkeys((path.source, path.target) for path in self.paths))

    def used(self, source: str, target: str) -> Path | None:
        """By which KV would go; None where no way works, or no worker starts."""
        if self._stopper(source, target) is not None:
            return None
        ways = [path for path in self.between(source, target) if path.transport in self.tried]
        return used_path(ways, self.min_bytes_per_s)

    def between(self, source: str, target: str) -> list[Path]:
        """All ways of one pair."""
        return [path for path in self.paths if (path.source, path.target) == (source, target)]

    @property
    def is_healthy(self) -> bool:
        """Every pair has a way, and workers start with what was named."""
        if self.untried or not self.pairs:
            return False
        return all(self.used(*pair) is not None for pair in self.pairs)

    @property
    def untried(self) -> list[str]:
        """What was named and serves no pool of this machine."""
        measured = {path.transport for path in self.paths}
        return [name for name in self.tried if name not in measured] if self.are_named else []

    @property
    def problems(self) -> list[str]:
        """Why workers do not start with what was named, and what to do."""
        found = [
            f"{name} serves pools on GPUs only, and none is used here: workers with it do not "
            "start; leave it out of transports, or mend what is said of GPUs above"
            for name in self.untried
        ]
        for pair in self.pairs:
            stopper = self._stopper(*pair)
            if stopper is not None:
                where = f"from {stopper.source} to {stopper.target}"
                found.append(
                    f"workers with {stopper.transport} do not start {where}: {stopper.problem}; or "
                    "leave it out of transports"
                )
        return found

    def _stopper(self, source: str, target: str) -> Path | None:
        if not self.are_named:
            return None
        named = (path for path in self.between(source, target) if path.transport in self.tried)
        return next((path for path in named if path.stops_worker), None)


def as_json(report: Report) -> dict[str, Any]:
    """One value, with units in the names."""
    return {
        "paths": [
            {
                "from": path.source,
                "to": path.target,
                "transport": path.transport,
                "works": path.works,
                "is_used": path == report.used(path.source, path.target),
                "bytes_per_s": None if path.bytes_per_s is None else round(path.bytes_per_s),
                "block_latency_ms": _in_ms(path.block_latency_s),
                "problem": path.problem,
            }
            for path in report.paths
        ],
        "machine": [
            {"subject": f.subject, "state": f.state, "detail": f.detail, "fix": f.fix}
            for f in report.findings
        ],
        "transports_tried_by_workers": report.tried,
        "min_bytes_per_s": report.min_bytes_per_s,
        "problems": report.problems,
        "is_healthy": report.is_healthy,
    }


def print_report(report: Report, console: Console | None = None) -> None:
    """Two tables, and a line for each pair of places."""
    if console is None:
        console = Console(markup=False, highlight=False)
        if not console.is_terminal:
            console = Console(markup=False, highlight=False, width=_WIDTH_WITHOUT_TERMINAL)
    console.print(_machine_table(report.findings))
    console.print(_path_table(report))
    console.print("ms: one block of 1 MiB, from the call until it is published")
    for source, target in report.pairs:
        console.print(f"KV from {source} to {target} goes {_way(report, source, target)}")
    for problem in report.problems:
        console.print(problem)


def _way(report: Report, source: str, target: str) -> str:
    used = report.used(source, target)
    if used is not None:
        return f"by {used.transport}"
    if any(path.stops_worker for path in report.between(source, target)) and report.are_named:
        return "by no way: no worker starts with these transports"
    working = [path for path in report.between(source, target) if path.works]
    is_fast = {path: (path.bytes_per_s or 0.0) >= report.min_bytes_per_s for path in working}
    others = [path.transport for path in working if is_fast[path]]
    if others:
        return f"by none of {', '.join(report.tried)}; name {' or '.join(others)} in transports"
    if working:
        # A little below what was measured, which is never the same twice.
        fastest = 0.9 * max(path.bytes_per_s or 0.0 for path in working)
        return (
            f"by no way: none moves {report.min_bytes_per_s:.3g} bytes/s; lower "
            f"--min-kv-bytes-per-s, here and of prefill workers, to {fastest:.2g} or less, or mend "
            "a faster way"
        )
    return "by no way: mend one of them"


def _machine_table(findings: Sequence[Finding]) -> Table:
    table = _table("this machine", "", "state", "found", "what to do")
    for finding in findings:
        table.add_row(finding.subject, finding.state, finding.detail, finding.fix or "")
    return table


def _path_table(report: Report) -> Table:
    table = _table("ways of KV, pushed", "from", "to", "transport", "used", "GB/s", "ms", "problem")
    for path in report.paths:
        is_used = path == report.used(path.source, path.target)
        speed = "-" if path.bytes_per_s is None else f"{path.bytes_per_s / 1e9:.2f}"
        latency = "-" if path.block_latency_s is None else f"{path.block_latency_s * 1e3:.3f}"
        problem = path.problem or ""
        if path.bytes_per_s is not None and path.bytes_per_s < report.min_bytes_per_s:
            problem = f"slower than {report.min_bytes_per_s / 1e9:g} GB/s"
        cells = path.source, path.target, path.transport, "yes" if is_used else ""
        table.add_row(*cells, speed, latency, problem)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=title,
        title_justify="left",
    )
    for column in columns:
        is_number = column in ("GB/s", "ms")
        is_text = column in ("found", "what to do", "problem")
        justify: JustifyMethod = "right" if is_number else "left"
        table.add_column(column, justify=justify, no_wrap=not is_text, overflow="fold")
    return table


def _in_ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 3)
