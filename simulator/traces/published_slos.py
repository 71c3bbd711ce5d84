"""Latency targets of published evaluations: a table for --slo, not a workload."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from simulator.traces.csv_table import CsvTable
from simulator.traces.errors import (
    FieldProblem,
    TraceEmpty,
    TraceFieldInvalid,
    TraceFormatUnknown,
)
from simulator.traces.fields import text_number
from simulator.traces.lines import open_trace

SLO_COLUMNS = frozenset({"source", "class", "ttft_ms", "per_token_ms", "per_token_metric"})
_COLUMNS = (
    "source",
    "model",
    "workload",
    "class",
    "share",
    "ttft_ms",
    "per_token_ms",
    "per_token_metric",
    "attainment_rule",
    "hardware",
    "where",
)
_MAX_ROWS = 10_000
_MAX_LIMIT = 1e9
_EXPECTED_LIMIT = "milliseconds above 0, or a slowdown such as 2x, or nothing"
_EXPECTED_SHARE = "a number or a fraction above 0, at most 1, or nothing"


@dataclass(frozen=True, slots=True)
class AbsoluteLimit:
    """At most so long, whatever the request."""

    seconds: float


@dataclass(frozen=True, slots=True)
class SlowdownLimit:
    """At most so many times what the request takes on an idle machine."""

    factor: float


LatencyLimit = AbsoluteLimit | SlowdownLimit


@dataclass(frozen=True, slots=True)
class PublishedSlo:
    """One row: what an evaluation asked of one class of requests."""

    source: str
    model: str
    workload: str
    service_class: str
    share: float | None  # of the requests, in (0, 1]; None where the source has no rule
    ttft: LatencyLimit | None
    per_token: LatencyLimit | None
    per_token_metric: str  # which statistic of an answer's gaps is limited, in words
    attainment_rule: str  # which share must meet it, in words
    hardware: str
    where: str  # in the source


def read_slos(path: str | Path) -> tuple[PublishedSlo, ...]:
    """The rows in the order of the file.

    Raises: TraceError (TraceFormatUnknown where the columns are others).
    """
    path = Path(path)
    with open_trace(path) as source:
        lines = iter(source)
        header = next(lines, None)
        if header is None:
            raise TraceEmpty(path, "the file is empty")
        table = CsvTable(source, header, lines)
        missing = [column for column in _COLUMNS if column not in table.columns]
        if missing:
            raise TraceFormatUnknown(
                path,
                source.number,
                f"a table of SLOs lacks the columns {', '.join(missing)}",
                f"it has {', '.join(_COLUMNS)}",
            )
        slos: list[PublishedSlo] = []
        for row in table.rows():
            try:
                slos.append(_slo(dict(zip(table.columns, row, strict=True))))
                if len(slos) > _MAX_ROWS:
                    raise FieldProblem("source", slos[-1].source, f"at most {_MAX_ROWS} rows")
            except FieldProblem as problem:
                raise TraceFieldInvalid(path, source.number, problem) from None
    if not slos:
        raise TraceEmpty(path, "no row below the header")
    return tuple(slos)


def _slo(row: Mapping[str, str]) -> PublishedSlo:
    return PublishedSlo(
        row["source"],
        row["model"],
        row["workload"],
        row["class"],
        _share(row["share"]),
        _limit(row["ttft_ms"], "ttft_ms"),
        _limit(row["per_token_ms"], "per_token_ms"),
        row["per_token_metric"],
        row["attainment_rule"],
        row["hardware"],
        row["where"],
    )


def _limit(text: str, field: str) -> LatencyLimit | None:
    if not text:
        return None
    number = text_number(text.removesuffix("x"), field, _EXPECTED_LIMIT)
    if not 0 < number <= _MAX_LIMIT:
        raise FieldProblem(field, text, _EXPECTED_LIMIT)
    return SlowdownLimit(number) if text.endswith("x") else AbsoluteLimit(number / 1000)


def _share(text: str) -> float | None:
    if not text:
        return None
    top, slash, bottom = text.partition("/")
    number = text_number(top, "share", _EXPECTED_SHARE)
    if slash:
        whole = text_number(bottom, "share", _EXPECTED_SHARE)
        number = number / whole if whole > 0 else 0.0
    if not 0 < number <= 1:
        raise FieldProblem("share", text, _EXPECTED_SHARE)
    return number
