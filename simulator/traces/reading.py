"""`read_workload`: a trace of any format that we know, told apart by what the file holds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.traces.arrival_tables import (
    ARRIVAL_COLUMNS,
    LENGTH_COLUMNS,
    NAME_COLUMNS,
    read_arrivals,
    read_lengths,
)
from simulator.traces.client_tables import CLIENT_COLUMNS, RATE_COLUMNS, read_clients, read_rates
from simulator.traces.conversations import CONVERSATION_FIELDS, read_conversations
from simulator.traces.csv_table import CsvTable, header_columns
from simulator.traces.draft import Draft, finished
from simulator.traces.errors import (
    FieldProblem,
    TraceEmpty,
    TraceFieldInvalid,
    TraceFormatUnknown,
    TraceNotAWorkload,
    shown,
)
from simulator.traces.json_lines import objects, parse_object
from simulator.traces.lines import OnProgress, TraceLines, open_trace
from simulator.traces.options import DEFAULT_PREFIX_BLOCK_TOKENS, ReadOptions
from simulator.traces.published_slos import SLO_COLUMNS
from simulator.traces.stamped_requests import (
    CONTENT_BLOCK_FIELDS,
    STAMPED_FIELDS,
    read_content_blocks,
    read_prefix_blocks,
)
from simulator.traces.workload import Workload


def read_workload(
    path: str | Path,
    *,
    rate_scale: float = 1.0,
    rate_rps: float | None = None,
    max_requests: int | None = None,
    seed: int = 0,
    prefix_block_tokens: int = DEFAULT_PREFIX_BLOCK_TOKENS,
    on_progress: OnProgress | None = None,
) -> Workload:
    """The requests of a trace file, plain or gzip; docs/traces.md has the formats.

    The same file and options give the same workload.

    rate_scale: all times are divided by it, pauses in conversations included.
    rate_rps: requests per second, before rate_scale. Recorded arrivals are stretched to it; where a
        format has no arrivals they are drawn at it, and a table of lengths needs it.
    max_requests: the first so many rows; of what is drawn, the first so many to arrive.
    seed: of everything that is drawn.
    prefix_block_tokens: into pieces of how many tokens prompts of RAGPulse are cut.
    on_progress: called now and then with bytes read and bytes of the file, if that can be known.

    Raises: TraceError.
    """
    options = ReadOptions(
        rate_scale, rate_rps, max_requests, seed, prefix_block_tokens, on_progress
    )
    path = Path(path)
    with open_trace(path, on_progress) as source:
        try:
            draft = _read(source, options)
        except FieldProblem as problem:
            raise TraceFieldInvalid(path, source.number, problem) from None
    return finished(path, draft, options)


@dataclass(frozen=True, slots=True)
class _TableFormat:
    required: frozenset[str]
    read: Callable[[CsvTable, ReadOptions], Draft]
    # Whether columns that nobody asked for are no reason to think of another format.
    may_have_others: bool = True


@dataclass(frozen=True, slots=True)
class _ObjectFormat:
    required: frozenset[str]
    read: Callable[[TraceLines, Iterator[dict[str, Any]], ReadOptions], Draft]


def _refuse_slos(table: CsvTable, options: ReadOptions) -> Draft:
    raise TraceNotAWorkload(
        table.source.path, "a table of published SLOs", "give it as --slo, and a trace as --trace"
    )


# The first that fits is taken. A table of lengths must be nothing else: an arrival column under
# another name would be dropped silently.
_TABLES = (
    _TableFormat(ARRIVAL_COLUMNS, read_arrivals),
    _TableFormat(LENGTH_COLUMNS, read_lengths, may_have_others=False),
    _TableFormat(CLIENT_COLUMNS, read_clients),
    _TableFormat(RATE_COLUMNS, read_rates),
    _TableFormat(SLO_COLUMNS, _refuse_slos),
)
_OBJECTS = (
    _ObjectFormat(CONVERSATION_FIELDS, read_conversations),
    _ObjectFormat(CONTENT_BLOCK_FIELDS, read_content_blocks),
    _ObjectFormat(STAMPED_FIELDS, read_prefix_blocks),
)
_KNOWN_TABLES = (
    "a table of requests has the header arrival_s,prompt_tokens,output_tokens (and tenant,session)"
)
_KNOWN_OBJECTS = (
    "a request has timestamp, input_length and output_length, or conversation, turn, t, "
    "input_length and hash_runs"
)


def _read(source: TraceLines, options: ReadOptions) -> Draft:
    lines = iter(source)
    first = next(lines, None)
    if first is None:
        raise TraceEmpty(source.path, "the file is empty")
    if first.lstrip()[0] in "{[":
        return _read_objects(source, first, lines, options)
    return _read_table(source, first, lines, options)


def _read_table(
    source: TraceLines, header: str, lines: Iterator[str], options: ReadOptions
) -> Draft:
    columns = header_columns(header)
    for known in _TABLES:
        others = set(columns) - known.required - NAME_COLUMNS
        if known.required <= set(columns) and (known.may_have_others or not others):
            return known.read(CsvTable(source, header, lines), options)
    if columns and all(_is_number(column) for column in columns):
        found = f"no header line, but the values {shown(header.strip())}"
    else:
        found = f"no known columns in {shown(header.strip())}"
    raise TraceFormatUnknown(source.path, source.number, found, _KNOWN_TABLES)


def _read_objects(
    source: TraceLines, first: str, lines: Iterator[str], options: ReadOptions
) -> Draft:
    fields = parse_object(source, first)
    for known in _OBJECTS:
        if known.required <= fields.keys():
            return known.read(source, objects(source, first, lines), options)
    found = f"the object has the fields {shown(', '.join(fields))}"
    raise TraceFormatUnknown(source.path, source.number, found, _KNOWN_OBJECTS)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
