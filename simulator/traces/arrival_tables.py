"""Tables of requests: with arrival times (ours, Azure, ServeGen draws), or lengths only."""

from collections.abc import Iterator

from simulator.traces.arrivals import poisson_arrivals
from simulator.traces.csv_table import CsvTable
from simulator.traces.draft import Draft, Row, taken
from simulator.traces.errors import TraceRateMissing
from simulator.traces.fields import text_name, text_output_tokens, text_prompt_tokens, text_time_s
from simulator.traces.options import ReadOptions
from simulator.traces.workload import DEFAULT_TENANT

ARRIVAL_COLUMNS = frozenset({"arrival_s", "prompt_tokens", "output_tokens"})
LENGTH_COLUMNS = frozenset({"prompt_tokens", "output_tokens"})
# ServeGen calls its tenants clients.
_TENANT_COLUMNS = ("tenant", "client")
NAME_COLUMNS = frozenset({*_TENANT_COLUMNS, "session"})


def read_arrivals(table: CsvTable, options: ReadOptions) -> Draft:
    """Raises: TraceError."""
    draft = Draft(taken(table.source.path, _rows(table, "arrival_s"), options), is_recorded=True)
    draft.notes += _unread(table)
    return draft


def read_lengths(table: CsvTable, options: ReadOptions) -> Draft:
    """Lengths in the order of the file, arriving in a Poisson process of rate_rps.

    Raises: TraceRateMissing, TraceError.
    """
    path = table.source.path
    if options.rate_rps is None:
        raise TraceRateMissing(path, "a table of lengths")
    rows = taken(path, _rows(table, None), options)
    arrivals = poisson_arrivals(len(rows), options.rate_rps, options.random_for("arrivals"))
    timed = [row._replace(arrival_s=arrival) for row, arrival in zip(rows, arrivals, strict=True)]
    draft = Draft(timed, is_recorded=False)
    draft.notes.append(
        f"Arrivals were drawn: Poisson at {options.rate_rps:g} requests per second, "
        f"seed {options.seed}."
    )
    return draft


def _rows(table: CsvTable, arrival_column: str | None) -> Iterator[Row]:
    arrival_at = None if arrival_column is None else table.require(arrival_column)
    prompt_at, output_at = table.require("prompt_tokens"), table.require("output_tokens")
    tenant_column = next((name for name in _TENANT_COLUMNS if name in table.columns), None)
    tenant_at = None if tenant_column is None else table.require(tenant_column)
    session_at = table.index("session")
    # Few names on many rows: each is kept once.
    names: dict[str, str] = {}
    for row in table.rows():
        tenant, session = DEFAULT_TENANT, ""
        if tenant_at is not None:
            tenant = text_name(row[tenant_at], tenant_column or "") or DEFAULT_TENANT
            tenant = names.setdefault(tenant, tenant)
        if session_at is not None:
            session = text_name(row[session_at], "session")
            session = names.setdefault(session, session)
        yield Row(
            0.0 if arrival_at is None else text_time_s(row[arrival_at], "arrival_s"),
            text_prompt_tokens(row[prompt_at], "prompt_tokens"),
            text_output_tokens(row[output_at], "output_tokens"),
            tenant,
            session,
        )


def _unread(table: CsvTable) -> list[str]:
    unread = [name for name in table.columns if name not in ARRIVAL_COLUMNS | NAME_COLUMNS]
    return [f"Columns that were not read: {', '.join(unread)}."] if unread else []
