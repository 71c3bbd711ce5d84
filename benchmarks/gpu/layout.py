"""Orders of the paged store and sizes of blocks: what decode attention reads, a push gathers.

In order "blocks, layers" (engine/kv_pool.py) a block holds its tokens of all layers in one piece;
in "layers, blocks" it is a piece for each layer. The second is a pool of one layer, in which the
blocks of every layer lie behind those of the layer before.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.engine_setup import EngineSetup, config_of
from benchmarks.gpu.journal import Journal
from engine.attention.backend import AttentionBackend, StepAttention
from engine.attention.batch_over import batch_over
from engine.attention.choice import AttentionShape, choose_attention
from engine.attention.flashinfer import FlashInferAttention, InstalledKernels
from engine.kv_pool import KvLayout, KvPool

TOGETHER, APART = "blocks, layers", "layers, blocks"
_PAGE_SIZES = (16, 1, 32, 64)
# The other cells are told as ratios to this one, within each turn.
_REFERENCE = (TOGETHER, 16)


@dataclass(frozen=True, slots=True)
class Load:
    """A decode step: sequences of so many tokens, the last of which is new."""

    batch: int
    context: int


@dataclass(frozen=True, slots=True)
class Cell:
    """One store that holds the load's KV, its blocks in no order."""

    order: str
    page_size: int
    attend: Callable[[], None]
    gather: Callable[[], None]
    num_pieces: int


def measure_layout(setup: EngineSetup, journal: Journal) -> None:
    """A row for each load, order and size of blocks; cells of a load are measured by turns."""
    options = setup.options
    turns = 3 if options.is_quick else 21
    layout = _layout_of(setup)
    journal.note(
        shape=options.shape,
        dtype=options.dtype_name,
        attention=_backends(setup, layout, 1)[0].arithmetic,
        kv_bytes_per_token=layout.block_bytes // layout.block_size,
        ratios_to=f"{_REFERENCE[0]}, blocks of {_REFERENCE[1]} tokens, within {turns} turns",
        time="wall" if options.is_cuda else "of the processor",
    )
    for load in _loads(setup):
        name = f"{load.batch} x {load.context} tokens"
        if not journal.has_time(name, 5.0):
            continue
        cells = list(_cells(setup, layout, load))
        taken = [_turn(setup, cells, turn) for turn in range(turns + 1)][1:]
        for index, cell in enumerate(cells):
            row = _figures(cells, taken, index)
            journal.row({"load": name, **row})
            where = f"{name}: {cell.order}, {cell.page_size} tokens"
            print(f"layout {where}: attention {row['attention_ms']:.3f} ms", flush=True)


def _turn(setup: EngineSetup, cells: list[Cell], turn: int) -> list[tuple[float, float]]:
    """Seconds of attending and of gathering for each cell, begun with another one each time."""
    # Where other processes have the cores too, the time of this one is what can be compared.
    clock = setup.clock if setup.options.is_cuda else time.process_time
    found: dict[int, tuple[float, float]] = {}
    for offset in range(len(cells)):
        index = (turn + offset) % len(cells)
        started = clock()
        cells[index].attend()
        attended = clock()
        cells[index].gather()
        found[index] = attended - started, clock() - attended
    return [found[index] for index in range(len(cells))]


def _figures(
    cells: list[Cell], taken: list[list[tuple[float, float]]], index: int
) -> dict[str, object]:
    first = next(i for i, c in enumerate(cells) if (c.order, c.page_size) == _REFERENCE)
    cell = cells[index]
    row: dict[str, object] = {
        "order": cell.order,
        "page_size": cell.page_size,
        "pieces": cell.num_pieces,
    }
    for kind, name in enumerate(("attention", "gather")):
        row[f"{name}_ms"] = 1e3 * statistics.median(turn[index][kind] for turn in taken)
        ratios = [turn[index][kind] / turn[first][kind] for turn in taken]
        low, middle, high = statistics.quantiles(ratios, n=4)
        row[f"{name}_ratio"] = {"median": middle, "quartiles": [low, high]}
    return row


def _loads(setup: EngineSetup) -> tuple[Load, ...]:
    if setup.options.is_quick:
        return (Load(2, 64),)
    if setup.options.is_cuda:
        return Load(64, 2048), Load(8, 8192), Load(16, 1024)
    return Load(8, 512), Load(1, 2048)


def _layout_of(setup: EngineSetup) -> KvLayout:
    config = config_of(setup.options.shape)
    heads = (config.num_kv_heads, config.head_dim)
    return KvLayout(config.num_layers, *heads, _REFERENCE[1], setup.options.dtype_name)


def _cells(setup: EngineSetup, layout: KvLayout, load: Load) -> Iterator[Cell]:
    for page_size in _PAGE_SIZES:
        for order in (TOGETHER, APART):
            yield _cell(setup, replace(layout, block_size=page_size), order, load)


def _cell(setup: EngineSetup, layout: KvLayout, order: str, load: Load) -> Cell:
    num_layers = layout.num_layers
    per_sequence = -(-load.context // layout.block_size)
    num_blocks = load.batch * per_sequence
    seed = np.random.default_rng(num_blocks)
    tables = seed.permutation(num_blocks).reshape(load.batch, per_sequence)
    if order == TOGETHER:
        pool = KvPool(layout, num_blocks, setup.options.device)
        pieces = tables.reshape(-1)
        shifts = [0]
    else:
        layout = replace(layout, num_layers=1)
        pool = KvPool(layout, num_layers * num_blocks, setup.options.device)
        shifts = [layer * num_blocks for layer in range(num_layers)]
        pieces = (tables.reshape(-1)[:, None] + np.array(shifts)).reshape(-1)
    news = [(load.context - 1, 1)] * load.batch
    backends = _backends(setup, layout, len(shifts))
    steps = [
        backend.begin(batch_over(tables + shift, news, layout.block_size), pool)
        for backend, shift in zip(backends, shifts, strict=True)
    ]
    if order == TOGETHER:
        work = [(steps[0], layer) for layer in range(num_layers)]
    else:
        work = [(step, 0) for step in steps]
    rows = pool.tensor.flatten().view(torch.uint8).view(-1, layout.block_bytes)
    out = torch.empty(len(pieces), layout.block_bytes, dtype=torch.uint8, device=pool.device)
    return Cell(
        order,
        layout.block_size,
        partial(_attend, work, *_new_rows(setup, load)),
        partial(_gather, rows, torch.from_numpy(pieces).to(pool.device), out),
        len(pieces),
    )


def _new_rows(setup: EngineSetup, load: Load) -> tuple[Tensor, Tensor]:
    """Queries and keys of the step, as the engine has them on this device."""
    config, options = config_of(setup.options.shape), setup.options
    dtype = options.dtype if options.is_cuda else torch.float32
    query = torch.ones(load.batch, config.num_heads, config.head_dim, dtype=dtype)
    key = torch.ones(load.batch, config.num_kv_heads, config.head_dim, dtype=dtype)
    return query.to(options.device), key.to(options.device)


def _attend(work: list[tuple[StepAttention, int]], query: Tensor, key: Tensor) -> None:
    for step, layer in work:
        step.attend(layer, query, key, key)


def _gather(rows: Tensor, pieces: Tensor, out: Tensor) -> None:
    """What a push over a network does first: pieces that lie anywhere, in one buffer."""
    torch.index_select(rows, 0, pieces, out=out)


def _backends(setup: EngineSetup, layout: KvLayout, number: int) -> list[AttentionBackend]:
    """So many that each may have a step of its own."""
    config, options = config_of(setup.options.shape), setup.options
    device = torch.device(options.device)
    layers = config.layer_attention[: layout.num_layers]
    shape = AttentionShape(layout, config.num_heads, layers, device, options.dtype)
    first = choose_attention(shape, options.attention)
    if not isinstance(first, FlashInferAttention):
        return [first] * number
    # Its plans stay with the object; the workspace is shared.
    kernels = InstalledKernels(device)
    return [
        FlashInferAttention(layout, config.num_heads, layers, kernels, options.dtype)
        for _ in range(number)
    ]
