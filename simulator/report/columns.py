"""What of a run stands in a table: headings, cells, and which of two values is the better one.

Reads the JSON objects of `simulator/metrics/summary.py`, so that a file of them is enough.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from simulator.metrics.summary import Json

# The JSON object of a run.
Run = Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of each run."""

    # Two lines.
    heading: tuple[str, str]
    # In words, for whoever wonders.
    meaning: str
    # None where a run has no such figure.
    value: Callable[[Run], float | None]
    text: Callable[[float], str]
    # True: more is better; False: less is; None: neither.
    is_more_better: bool | None

    def cell(self, run: Run) -> str:
        """The figure as it is printed."""
        value = self.value(run)
        return "-" if value is None else self.text(value)


@dataclass(frozen=True, slots=True)
class Group:
    """Runs that may be compared: of one trace at one rate, on one hardware, with the same goals."""

    title: str
    runs: tuple[Run, ...]
    # Of each run: what tells it from the others.
    labels: tuple[str, ...]


def groups(runs: Sequence[Run]) -> list[Group]:
    """In the order in which they appear first."""
    by_key: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        key = tuple(str(run[name]) for name in ("trace", "rate_scale", "hardware", "slo"))
        by_key.setdefault(key, []).append(run)
    return [Group(_title(same), tuple(same), labels(same)) for same in by_key.values()]


def labels(runs: Sequence[Run]) -> tuple[str, ...]:
    """The policy of each; with its cluster where one policy ran on several."""
    clusters: dict[str, set[str]] = {}
    for run in runs:
        clusters.setdefault(str(run["policy"]), set()).add(str(run["cluster"]))
    return tuple(
        str(run["policy"])
        if len(clusters[str(run["policy"])]) == 1
        else f"{run['policy']} ({run['cluster']})"
        for run in runs
    )


def best(group: Group, column: Column) -> frozenset[int]:
    """Positions of the runs with the best cell; none if all have it, or nothing is better."""
    if column.is_more_better is None:
        return frozenset()
    values = [column.value(run) for run in group.runs]
    known = [value for value in values if value is not None]
    if not known:
        return frozenset()
    wanted = column.text(max(known) if column.is_more_better else min(known))
    cells = [column.cell(run) for run in group.runs]
    found = frozenset(number for number, cell in enumerate(cells) if cell == wanted)
    return frozenset() if len(found) == len(cells) else found


def three_digits(value: float) -> str:
    """1234, 123, 12.3, 1.23, 0.123: as wide as a figure of a table may be."""
    for num_decimals, limit in ((3, 0.9995), (2, 9.995), (1, 99.95)):
        if abs(value) < limit:
            return f"{value:.{num_decimals}f}"
    return f"{value:.0f}"


def _title(runs: Sequence[Run]) -> str:
    first = runs[0]
    offered = _number(first, "offered_rps")
    rate = "all at once" if offered is None else f"{three_digits(offered)} req/s"
    clusters = dict.fromkeys(str(run["cluster"]) for run in runs)
    where = f"{', '.join(clusters)} on {first['hardware']}"
    return f"{first['trace']}, {rate}; {where}; goals {first['slo']}"


def _number(run: Run, *path: str) -> float | None:
    value: Json = run
    for key in path:
        assert isinstance(value, Mapping)
        value = value[key]
    assert value is None or isinstance(value, int | float)
    return value


def _at(*path: str) -> Callable[[Run], float | None]:
    return lambda run: _number(run, *path)


def _not_served(run: Run) -> float:
    return sum(_number(run, key) or 0.0 for key in ("failed", "cancelled", "unfinished"))


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _whole(value: float) -> str:
    return f"{value:.0f}"


_FIRST = "from arrival to the first token"

# From what matters most to what explains it.
COLUMNS: tuple[Column, ...] = (
    Column(
        ("goodput", "req/s"),
        "requests per second that finished and met all their goals",
        _at("goodput_rps"),
        three_digits,
        True,
    ),
    Column(
        ("attained", "%"),
        "share of all requests that finished and met all their goals",
        _at("slo_attainment"),
        _percent,
        True,
    ),
    Column(
        ("thruput", "req/s"),
        "requests per second that finished",
        _at("throughput_rps"),
        three_digits,
        True,
    ),
    Column(("TTFT p50", "ms"), f"{_FIRST}, median", _at("ttft_ms", "p50"), three_digits, False),
    Column(
        ("TTFT p99", "ms"), f"{_FIRST}, 99th percentile", _at("ttft_ms", "p99"), three_digits, False
    ),
    Column(
        ("TPOT mean", "ms"),
        "mean gap between the tokens of a request, mean over requests",
        _at("tpot_ms", "mean"),
        three_digits,
        False,
    ),
    Column(
        ("TBT p99", "ms"),
        "gap between two tokens, 99th percentile of all gaps",
        _at("tbt_ms", "p99"),
        three_digits,
        False,
    ),
    Column(
        ("JCT mean", "s"),
        "from arrival to the last token, mean",
        _at("jct_s", "mean"),
        three_digits,
        False,
    ),
    Column(
        ("preempted", "times"),
        "how often a sequence lost its place",
        _at("preemptions"),
        _whole,
        False,
    ),
    Column(
        ("KVC alloc.", "%"),
        "blocks that a sequence owns, of all blocks, mean over time",
        _at("kvc_allocated_share"),
        _percent,
        None,
    ),
    Column(
        ("KVC written", "%"),
        "the part of the blocks that holds KV, of all blocks, mean over time",
        _at("kvc_written_share"),
        _percent,
        None,
    ),
    Column(
        ("not served", "req"),
        "requests that failed, were cancelled or had not ended",
        _not_served,
        _whole,
        False,
    ),
    Column(("GPUs", ""), "GPUs of all workers", _at("gpus"), _whole, None),
)
