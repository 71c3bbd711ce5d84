"""A file of JSON objects, one per line."""

import json
from collections.abc import Iterator
from typing import Any

from simulator.traces.errors import TraceLineInvalid, shown
from simulator.traces.lines import TraceLines


def parse_object(source: TraceLines, line: str) -> dict[str, Any]:
    """The object on the latest line of the source. Raises: TraceLineInvalid."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        problem = f"is not JSON ({error}): {shown(line.rstrip())}"
        raise TraceLineInvalid(source.path, source.number, problem) from None
    if not isinstance(fields, dict):
        problem = f"holds no JSON object but {shown(line.rstrip())}"
        raise TraceLineInvalid(source.path, source.number, problem)
    return fields


def objects(source: TraceLines, first: str, lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The object on the line that was read already, and those behind it.

    Raises: TraceLineInvalid.
    """
    yield parse_object(source, first)
    for line in lines:
        yield parse_object(source, line)
