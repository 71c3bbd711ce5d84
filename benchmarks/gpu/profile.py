"""Times of single passes, as the tables that a hardware description is fitted to.

Two files: the columns of the published tables of whole iterations, and those of
`benchmarks.iteration_times`, which also tell what a mixed pass holds.
"""

import csv
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.engine_setup import EngineSetup
from benchmarks.gpu.journal import Journal
from benchmarks.iteration_times import Pass, blocks_for, seconds_of, shuffled, write_table
from scheduling.batch_time import BatchShape

# Of iteration_times_measured.csv.
PUBLISHED_COLUMNS = (
    *("source", "hardware", "model", "dtype", "tensor_parallel", "phase", "batch", "tokens"),
    *("context", "ms", "ms_std", "samples"),
)
SOURCE = "tandem"
PUBLISHED, OWN = "iteration_times_measured.csv", "iteration_times.csv"


def passes(is_quick: bool) -> Iterator[Pass]:
    """Every kind of pass that an iteration of a worker can be."""
    if is_quick:
        yield from (Pass(2, 32, 0, 0), Pass(8, 64, 0, 0), Pass(0, 0, 0, 32), Pass(0, 0, 32, 16))
        yield from (Pass(4, 64, 0, 16), Pass(2, 32, 0, 32))
        return
    for num_decode in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        for context in (64, 512, 1024, 2048, 4096, 8192, 16_384):
            yield Pass(num_decode, context, 0, 0)
    for tokens in (64, 128, 256, 512, 1024, 2048, 4096, 8192):
        for start in (0, 2048, 8192):
            yield Pass(0, 0, start, tokens)
    for num_decode in (8, 32, 128):
        for context in (512, 2048):
            for tokens in (128, 512, 2048):
                yield Pass(num_decode, context, 0, tokens)


def measure_profile(setup: EngineSetup, journal: Journal) -> None:
    """A row for each pass; the tables are written anew with every tenth of them and at the end."""
    grid = shuffled(passes(setup.options.is_quick))
    most = max(len(item.lengths()) for item in grid)
    # As a worker computes.
    model = setup.captured_model(most)
    runner = setup.runner(most, model)
    journal.note(**setup.facts(), hardware=hardware_name(setup))
    journal.note(layers="single kernels" if model is None else "recorded")
    own, published = journal.file(OWN), journal.file(PUBLISHED)
    found: list[tuple[BatchShape, float]] = []
    rows: list[tuple[Any, ...]] = []
    for number, item in enumerate(grid, start=1):
        name = f"{item.num_decode} decode of {item.context}, {item.chunk_tokens} prompt tokens"
        if blocks_for(item.lengths()) > setup.pool.num_blocks:
            journal.skip(name, f"{sum(item.lengths())} tokens do not fit in memory")
        elif journal.has_time(name, 1.0):
            repeats = 2 if setup.options.is_quick else 5
            seconds = seconds_of(runner, item, repeats, setup.clock)
            found.append((item.shape(), 1e3 * statistics.median(seconds)))
            if not item.chunk_start:
                rows.append(published_row(setup, item, seconds))
        if number % 10 == 0 or number == len(grid):
            write_table(own, found)
            _write_published(published, rows)
    journal.row({"passes": len(found), "files": [OWN, PUBLISHED]})


def published_row(setup: EngineSetup, item: Pass, seconds: list[float]) -> tuple[Any, ...]:
    """One line of the published table; of a mixed pass, the context of those that decode.

    It has no column for where a chunk begins, so only whole prompts can stand in it.
    """
    phase = "mixed" if item.num_decode and item.chunk_tokens else "prefill"
    phase = phase if item.chunk_tokens else "decode"
    context = item.context if item.num_decode else item.chunk_tokens
    ms = [1e3 * one for one in seconds]
    return (
        *(SOURCE, hardware_name(setup), setup.options.shape, setup.options.dtype_name, 1, phase),
        item.num_decode + bool(item.chunk_tokens),
        item.num_decode + item.chunk_tokens,
        context,
        *(f"{statistics.median(ms):.3f}", f"{statistics.stdev(ms):.3f}", len(ms)),
    )


def hardware_name(setup: EngineSetup) -> str:
    """As the driver names the device, in the manner of the tables."""
    if not setup.options.is_cuda:
        return "cpu"
    return str(torch.cuda.get_device_name()).lower().replace(" ", "-")


def _write_published(path: Path, rows: list[tuple[Any, ...]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(PUBLISHED_COLUMNS)
        ordered = sorted(rows, key=lambda row: (row[5], row[6], row[8], row[7]))
        writer.writerows(ordered)
