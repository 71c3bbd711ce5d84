"""Rows of published timing tables as measured passes: what descriptions are fitted to.

The tables are not part of the repository; the folder is an argument. Which table says what, and
where it is from, stands in each description's `source`.
"""

import csv
import gzip
from collections.abc import Iterator
from pathlib import Path

from scheduling.batch_time import BatchShape, chunk_attention
from scheduling.batch_time_fit import MeasuredBatch

Row = dict[str, str]
# Measured passes of one kind, by the name of the kind: prefill, decode, mixed.
Phases = dict[str, list[MeasuredBatch]]


class ProfileMissing(ValueError):
    """The folder lacks a table, or the table lacks the rows that a description needs."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")


def read_table(folder: Path, name: str) -> Iterator[Row]:
    """All rows of `name`.csv or `name`.csv.gz, as text by column. Raises: ProfileMissing."""
    plain, packed = folder / f"{name}.csv", folder / f"{name}.csv.gz"
    if plain.is_file():
        with plain.open() as lines:
            yield from csv.DictReader(lines)
    elif packed.is_file():
        with gzip.open(packed, "rt") as lines:
            yield from csv.DictReader(lines)
    else:
        problem = "no such table, .csv or .csv.gz; give the profiles folder"
        raise ProfileMissing(folder / name, problem)


def select(folder: Path, table: str, **wanted: str) -> list[Row]:
    """The rows whose columns have these values. Raises: ProfileMissing when there is none."""
    rows = [
        row
        for row in read_table(folder, table)
        if all(row[column] == value for column, value in wanted.items())
    ]
    if not rows:
        raise ProfileMissing(folder / table, f"no row with {wanted}; is the table another version?")
    return rows


def prompts(num_prompts: int, num_tokens: int) -> BatchShape:
    """Whole prompts of equal length in one pass."""
    return BatchShape(
        num_prompt_tokens=num_prompts * num_tokens,
        prompt_attention=num_prompts * chunk_attention(0, num_tokens),
    )


def decodes(num_decode: int, context: int) -> BatchShape:
    """Sequences of equal context."""
    return BatchShape(num_decode=num_decode, decode_context=num_decode * context)


def measured_iterations(
    folder: Path,
    *,
    max_prompt_tokens: int,
    request_overhead_ms: float = 0.0,
    **wanted: str,
) -> Phases:
    """Whole iterations of a real engine: prefill and decode rows of iteration_times_measured.

    `request_overhead_ms` is what a prefill row holds beside the pass; rows above
    `max_prompt_tokens` are larger than any iteration and left out.
    """
    phases: Phases = {"prefill": [], "decode": []}
    for row in select(folder, "iteration_times_measured", **wanted):
        batch, context = int(row["batch"]), int(row["context"])
        ms = float(row["ms"])
        if row["phase"] == "prefill" and batch * context <= max_prompt_tokens:
            seconds = (ms - request_overhead_ms) / 1e3
            phases["prefill"].append(MeasuredBatch(prompts(batch, context), seconds))
        elif row["phase"] == "decode":
            phases["decode"].append(MeasuredBatch(decodes(batch, context), ms / 1e3))
    return phases


def fitted_formulas(folder: Path, max_kv_tokens: int, **wanted: str) -> Phases:
    """Points on the lines that another simulator fitted to its own profile (DistServe's).

    Prompts from 64 tokens on and decode batches that fit into the KV cache.
    """
    rows = select(folder, "fitted_iteration_models", **wanted)
    lines = {
        (row["phase"], row["regime"]): [float(row[c]) for c in ("c0", "c1", "c2")] for row in rows
    }
    fixed, per_token, per_square = lines["prefill", "all"]
    phases: Phases = {"prefill": [], "decode": []}
    for num_prompts, length in [(1, 64 << i) for i in range(6)] + [(2, 256), (4, 256), (4, 512)]:
        ms = fixed + num_prompts * (per_token * length + per_square * length**2)
        phases["prefill"].append(MeasuredBatch(prompts(num_prompts, length), ms / 1e3))
    for batch in (1, 4, 8, 16, 32, 64, 94, 95, 128, 192, 256):
        for context in (64, 128, 256, 512, 1024, 2048):
            if batch * context > max_kv_tokens:
                continue
            regime = "batch<95" if batch < 95 else "batch>=95"
            fixed, per_context, per_sequence = lines["decode", regime]
            ms = fixed + per_context * batch * context + per_sequence * batch
            phases["decode"].append(MeasuredBatch(decodes(batch, context), ms / 1e3))
    return phases


def measurements(path: Path) -> Phases:
    """Our own passes: columns num_decode, decode_context, num_prompt_tokens, prompt_attention, ms.

    What `python -m benchmarks.iteration_times` writes.
    """
    phases: Phases = {"prefill": [], "decode": [], "mixed": []}
    with path.open() as lines:
        for row in csv.DictReader(lines):
            shape = BatchShape(
                int(row["num_decode"]),
                int(row["decode_context"]),
                int(row["num_prompt_tokens"]),
                int(row["prompt_attention"]),
            )
            kind = "mixed" if shape.num_decode and shape.num_prompt_tokens else "prefill"
            kind = kind if shape.num_prompt_tokens else "decode"
            phases[kind].append(MeasuredBatch(shape, float(row["ms"]) / 1e3))
    return {kind: rows for kind, rows in phases.items() if rows}


def kv_capacity(folder: Path, **wanted: str) -> int:
    return int(select(folder, "kv_capacity_tokens", **wanted)[0]["max_kv_tokens"])


def kv_bytes_per_token(folder: Path, model: str) -> int:
    return int(select(folder, "model_geometry", model=model)[0]["kv_bytes_per_token_16bit"])


def link(folder: Path, fabric: str, devices_per_node: int) -> tuple[float, float]:
    """Latency in seconds and bytes/s of send/receive between two GPUs.

    Two ranks on one node, or with `devices_per_node` 1 on two. The rate is that of the largest
    message, the latency that of the smallest: what a KV transfer of megabytes sees.
    """
    rows = select(
        folder,
        "network_times_vidur",
        fabric=fabric,
        operation="send_recv",
        devices_per_node=str(devices_per_node),
    )
    rows.sort(key=lambda row: int(row["bytes"]))
    latency_s = float(rows[0]["ms"]) / 1e3
    largest = rows[-1]
    return latency_s, int(largest["bytes"]) / (float(largest["ms"]) / 1e3 - latency_s)
