"""The beginning of a run for chrome://tracing and Perfetto: who computed what, who waited where.

One track for each worker with its iterations and a counter of its KV blocks, one for each request
with its phases inside it. Times are whole microseconds, so that what lies inside stays inside.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simulator.metrics.trace_log import TracedRequest, TraceLog
from simulator.report.whole_file import replace_file

_WORKERS, _REQUESTS = 1, 2
# Colours that the viewers know by name.
_COLOR_BY_PHASE = {
    "prompt_queued": "grey",
    "prefilling": "thread_state_running",
    "generation_queued": "white",
    "transferring": "thread_state_iowait",
    "decoding": "good",
}


def chrome_trace(log: TraceLog) -> str:
    """The text of the file. Requests that had not ended, and their phases, are left out."""
    content = {
        "displayTimeUnit": "ms",
        "otherData": {
            "dropped_iterations": log.num_dropped_iterations,
            "dropped_phases": log.num_dropped_phases,
            "max_requests": log.max_requests,
        },
        "traceEvents": [*_names(), *_worker_events(log), *_request_events(log)],
    }
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n"


def write_chrome_trace(path: Path, log: TraceLog) -> None:
    """Replace the file, or leave it as it was. Raises: OSError."""
    replace_file(path, chrome_trace(log))


def _names() -> Iterator[dict[str, Any]]:
    for process, name in ((_WORKERS, "workers"), (_REQUESTS, "requests")):
        yield _meta("process_name", process, 0, name=name)
        yield _meta("process_sort_index", process, 0, sort_index=process)


def _worker_events(log: TraceLog) -> Iterator[dict[str, Any]]:
    ids = [one.worker_id for one in log.iterations] + [one.worker_id for one in log.kv]
    track_by_id = {name: number for number, name in enumerate(sorted(set(ids)), start=1)}
    for name, track in track_by_id.items():
        yield _meta("thread_name", _WORKERS, track, name=name)
    for one in log.iterations:
        tokens = {"decode": one.num_decode_tokens, "prompt": one.num_prompt_tokens}
        name = " + ".join(f"{number} {kind}" for kind, number in tokens.items() if number)
        track = track_by_id[one.worker_id]
        yield _span(name or "empty", _WORKERS, track, one.begin_s, one.end_s, tokens)
    for held in log.kv:
        yield {
            "ph": "C",
            "name": f"KV blocks of {held.worker_id}",
            "pid": _WORKERS,
            "ts": _us(held.at_s),
            "args": {
                "written": round(held.num_written_blocks, 3),
                "unwritten": round(held.num_allocated_blocks - held.num_written_blocks, 3),
            },
        }


def _request_events(log: TraceLog) -> Iterator[dict[str, Any]]:
    request_by_number = {one.number: one for one in log.requests}
    for number in sorted(request_by_number):
        yield from _request(request_by_number[number])
    for phase in log.phases:
        if phase.number not in request_by_number:
            continue
        where = {"worker": phase.worker_id} if phase.worker_id else {}
        track = phase.number + 1
        event = _span(phase.name, _REQUESTS, track, phase.begin_s, phase.end_s, where)
        if phase.name in _COLOR_BY_PHASE:
            event["cname"] = _COLOR_BY_PHASE[phase.name]
        yield event


def _request(request: TracedRequest) -> Iterator[dict[str, Any]]:
    track = request.number + 1
    yield _meta("thread_name", _REQUESTS, track, name=f"request {request.number}")
    yield _meta("thread_sort_index", _REQUESTS, track, sort_index=track)
    sizes = {
        "status": request.status,
        "prompt_tokens": request.num_prompt_tokens,
        "output_tokens": request.num_output_tokens,
    }
    title = f"{request.num_prompt_tokens} in, {request.num_output_tokens} out"
    yield _span(title, _REQUESTS, track, request.arrived_at_s, request.ended_at_s, sizes)
    if request.first_token_at_s is not None:
        yield {
            "ph": "i",
            "s": "t",
            "name": "first token",
            "pid": _REQUESTS,
            "tid": track,
            "ts": _us(request.first_token_at_s),
        }


def _span(
    name: str, process: int, track: int, begin_s: float, end_s: float, more: dict[str, Any]
) -> dict[str, Any]:
    begin_us = _us(begin_s)
    return {
        "ph": "X",
        "name": name,
        "pid": process,
        "tid": track,
        "ts": begin_us,
        "dur": _us(end_s) - begin_us,
        "args": more,
    }


def _meta(kind: str, process: int, track: int, **what: object) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": track, "args": what}


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
