"""What a reader hands over: rows in the trace's own time. Here they become a workload."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice, pairwise
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from simulator.traces.errors import TraceEmpty, TraceOptionInvalid, TraceTooLarge
from simulator.traces.options import ReadOptions
from simulator.traces.workload import DEFAULT_TENANT, TraceRequest, Workload

_SUFFIXES = {".gz", ".csv", ".jsonl", ".json", ".txt"}


class Row(NamedTuple):
    """A request before rate_scale; the fields are those of TraceRequest."""

    # A tuple, because a million of them are made only to be taken apart again.
    arrival_s: float  # from any start
    num_prompt_tokens: int
    num_output_tokens: int  # 0 is raised to 1 in the end
    tenant: str = DEFAULT_TENANT
    session: str = ""
    prefix_ids: tuple[int, ...] = ()
    prefix_block_tokens: int = 0
    after_previous_s: float | None = None


_ARRIVAL = attrgetter("arrival_s")


@dataclass(slots=True)
class Draft:
    """Rows of one file."""

    rows: list[Row]
    # The arrival times are those of the recording: rate_rps, if given, stretches them. Otherwise
    # they were drawn at that rate.
    is_recorded: bool
    notes: list[str] = field(default_factory=list)

    def sort(self) -> None:
        """By arrival; what arrives together keeps the order of the file."""
        arrivals = [row.arrival_s for row in self.rows]
        num_late = sum(b < a for a, b in pairwise(arrivals))
        if num_late:
            self.notes.append(
                f"The file is not in order of arrival ({num_late} rows come after a later one); "
                "the rows were sorted."
            )
            self.rows.sort(key=_ARRIVAL)


def taken(path: Path, rows: Iterable[Row], options: ReadOptions) -> list[Row]:
    """The rows that are wanted; reads no further than that.

    Raises: TraceTooLarge.
    """
    read: list[Row] = []
    num_ids = 0
    for row in islice(rows, options.num_wanted):
        read.append(row)
        num_ids += len(row.prefix_ids)
        if num_ids > options.limits.max_prefix_ids:
            raise TraceTooLarge(
                path,
                f"more than {options.limits.max_prefix_ids} pieces in {len(read)} requests",
                "give max_requests, or cut the file",
            )
    if len(read) > options.limits.max_requests:
        raise TraceTooLarge(
            path,
            f"more than {options.limits.max_requests} requests",
            "give max_requests, or cut the file",
        )
    return read


def finished(path: Path, draft: Draft, options: ReadOptions) -> Workload:
    """The workload: sorted, cut to max_requests, from 0 on, and at the rate that was asked for.

    Raises: TraceEmpty, TraceOptionInvalid.
    """
    if not draft.rows:
        raise TraceEmpty(path, "no request in it")
    draft.sort()
    rows = draft.rows[: options.max_requests]
    first_s = rows[0].arrival_s
    speed = _speed(draft, rows, options)
    num_raised = sum(row.num_output_tokens == 0 for row in rows)
    if num_raised:
        draft.notes.append(
            f"{num_raised} requests with 0 output tokens were given 1: every answer has a token."
        )
    if options.rate_scale != 1:
        draft.notes.append(f"All times were divided by {options.rate_scale:g} (rate_scale).")
    requests = tuple(_request(row, first_s, speed) for row in rows)
    return Workload(_name(path), requests, tuple(draft.notes))


def _request(row: Row, first_s: float, speed: float) -> TraceRequest:
    think_s = row.after_previous_s
    return TraceRequest(
        (row.arrival_s - first_s) / speed,
        row.num_prompt_tokens,
        row.num_output_tokens or 1,
        row.tenant,
        row.session,
        row.prefix_ids,
        row.prefix_block_tokens,
        None if think_s is None else think_s / speed,
    )


def _speed(draft: Draft, rows: list[Row], options: ReadOptions) -> float:
    """What times are divided by."""
    if options.rate_rps is None or not draft.is_recorded:
        return options.rate_scale
    span_s = rows[-1].arrival_s - rows[0].arrival_s
    if span_s <= 0:
        raise TraceOptionInvalid(
            "rate_rps", options.rate_rps, "none here: all requests of the file arrive at once"
        )
    recorded_rps = len(rows) / span_s
    draft.notes.append(
        f"Arrivals were stretched from {recorded_rps:.4g} requests per second to "
        f"{options.rate_rps:g} (rate_rps)."
    )
    return options.rate_scale * options.rate_rps / recorded_rps


def _name(path: Path) -> str:
    while path.suffix in _SUFFIXES:
        path = path.with_suffix("")
    return path.name
