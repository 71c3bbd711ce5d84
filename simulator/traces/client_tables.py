"""ServeGen's tables: statistics per client and six hours, from which requests can be drawn.

The tables hold no requests. `read_clients` draws them: each client is an independent renewal
process with its published rate, family and variation, active in as many ten-minute windows of each
slot as published (which ones is drawn), with lengths from its published percentiles. Prompt and
answer are drawn independently, unlike in reality.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from operator import attrgetter
from random import Random

from simulator.traces.csv_table import CsvTable
from simulator.traces.draft import Draft, Row, taken
from simulator.traces.errors import FieldProblem, TraceEmpty, TraceNotAWorkload, TraceTooLarge
from simulator.traces.fields import MAX_TOKENS, text_name, text_number, text_time_s
from simulator.traces.length_distribution import LengthDistribution, fitted
from simulator.traces.options import ReadOptions
from simulator.traces.renewal import Gaps, Window, gaps_named, renewal_in_windows

CLIENT_COLUMNS = frozenset(
    {"slot_start_s", "client", "mean_rps", "active_fraction", "iat_cv_median", "iat_family"}
    | {"in_mean", "in_p50", "in_p90", "in_p99", "out_mean", "out_p50", "out_p90", "out_p99"}
)
RATE_COLUMNS = frozenset({"window_start_s", "rate_rps"})
_SLOT_S = 21_600.0
_WINDOW_S = 600.0
_WINDOWS_PER_SLOT = round(_SLOT_S / _WINDOW_S)
_MAX_RPS = 1e6
_MAX_CV = 100.0


@dataclass(frozen=True, slots=True)
class _ClientSlot:
    """One row whose client has lengths and requests."""

    start_s: float
    client: str
    mean_rps: float
    num_windows: int
    gaps: Gaps
    prompt: LengthDistribution
    output: LengthDistribution


def read_rates(table: CsvTable, options: ReadOptions) -> Draft:
    """Raises: TraceNotAWorkload, always."""
    raise TraceNotAWorkload(
        table.source.path,
        "a table of request rates without lengths",
        "read the table of clients (slot_start_s, client, ...) or a draw of the same model instead",
    )


def read_clients(table: CsvTable, options: ReadOptions) -> Draft:
    """Raises: TraceTooLarge, TraceEmpty, TraceError, FieldProblem."""
    path = table.source.path
    slots_of, total_rps, notes = _slots(table)
    if not slots_of:
        raise TraceEmpty(path, "no client with a rate and lengths in it")
    factor = 1.0 if options.rate_rps is None else options.rate_rps / total_rps
    num_expected = factor * _SLOT_S * sum(s.mean_rps for slots in slots_of for s in slots)
    if options.max_requests is None and num_expected > options.limits.max_requests:
        raise TraceTooLarge(
            path,
            f"describes about {num_expected:,.0f} requests",
            "give max_requests, or fewer per second by rate_rps",
        )
    streams = (_requests(slots, factor, options) for slots in slots_of)
    rows = taken(path, merge(*streams, key=attrgetter("arrival_s")), options)
    notes.append(
        f"Requests were drawn from the statistics of {len(slots_of)} clients, rates times "
        f"{factor:.4g}, seed {options.seed}; lengths of prompt and answer are independent."
    )
    return Draft(rows, is_recorded=False, notes=notes)


def _slots(table: CsvTable) -> tuple[list[list[_ClientSlot]], float, list[str]]:
    """Slots with requests of each client, the mean rate of all of them, and what was left out.

    Clients stand in the order of the file.
    """
    slots_of: dict[str, list[_ClientSlot]] = {}
    starts: set[float] = set()
    left_out_rps = read_rps = 0.0
    at = {column: table.require(column) for column in CLIENT_COLUMNS}
    for row in table.rows():
        fields = {column: row[place] for column, place in at.items()}
        start_s = text_time_s(fields["slot_start_s"], "slot_start_s")
        starts.add(start_s)
        mean_rps = _number(fields, "mean_rps", 0.0, _MAX_RPS)
        if not fields["in_mean"]:
            left_out_rps += mean_rps
        elif mean_rps > 0:
            _append(slots_of, _slot(fields, start_s, mean_rps))
            read_rps += mean_rps
    notes = []
    if left_out_rps:
        share = left_out_rps / (left_out_rps + read_rps)
        notes.append(f"Clients without published lengths were left out: {share:.0%} of the rate.")
    num_slots = (max(starts) - min(starts)) / _SLOT_S + 1 if starts else 1
    return list(slots_of.values()), read_rps / num_slots, notes


def _append(slots_of: dict[str, list[_ClientSlot]], slot: _ClientSlot) -> None:
    slots = slots_of.setdefault(slot.client, [])
    if slots and slot.start_s < slots[-1].start_s + _SLOT_S:
        earliest_s = slots[-1].start_s + _SLOT_S
        raise FieldProblem(
            "slot_start_s", slot.start_s, f"{earliest_s:g} or more, behind the client's slot before"
        )
    slots.append(slot)


def _slot(fields: dict[str, str], start_s: float, mean_rps: float) -> _ClientSlot:
    active_share = _number(fields, "active_fraction", 0.0, 1.0)
    cv = _number(fields, "iat_cv_median", 0.0, _MAX_CV)
    return _ClientSlot(
        start_s,
        text_name(fields["client"], "client"),
        mean_rps,
        max(1, round(active_share * _WINDOWS_PER_SLOT)),
        gaps_named(fields["iat_family"], cv),
        _lengths(fields, "in"),
        _lengths(fields, "out"),
    )


def _lengths(fields: dict[str, str], side: str) -> LengthDistribution:
    mean = _number(fields, f"{side}_mean", 0.0, MAX_TOKENS)
    p50 = max(1.0, _number(fields, f"{side}_p50", 0.0, MAX_TOKENS))
    p90 = _number(fields, f"{side}_p90", p50, MAX_TOKENS)
    p99 = _number(fields, f"{side}_p99", p90, MAX_TOKENS)
    return fitted(mean, p50, p90, p99)


def _number(fields: dict[str, str], field: str, low: float, high: float) -> float:
    expected = f"a number from {low:g} to {high:g}"
    number = text_number(fields[field], field, expected)
    if not low <= number <= high:
        raise FieldProblem(field, fields[field], expected)
    return number


def _requests(slots: Sequence[_ClientSlot], factor: float, options: ReadOptions) -> Iterator[Row]:
    """Of one client, ascending; what it draws does not depend on other clients."""
    client = slots[0].client
    rng = options.random_for(f"client {client}")
    for arrival_s, slot in renewal_in_windows(_windows(slots, factor, rng), rng):
        prompt, output = slot.prompt.at(rng.random()), slot.output.at(rng.random())
        yield Row(arrival_s, prompt, output, client)


def _windows(
    slots: Sequence[_ClientSlot], factor: float, rng: Random
) -> Iterator[Window[_ClientSlot]]:
    """Each ten minutes in which the client sends anything."""
    for slot in slots:
        rate_rps = slot.mean_rps * factor * _WINDOWS_PER_SLOT / slot.num_windows
        for number in sorted(rng.sample(range(_WINDOWS_PER_SLOT), slot.num_windows)):
            start_s = slot.start_s + number * _WINDOW_S
            yield Window(start_s, start_s + _WINDOW_S, rate_rps, slot.gaps, slot)
