"""Whole prompts and chunks beside what their products take at the rate of one large product."""

import statistics
from dataclasses import asdict

from benchmarks.gpu.engine_setup import EngineSetup
from benchmarks.gpu.journal import Journal
from benchmarks.gpu.rates import measure_rates
from benchmarks.iteration_times import Pass, blocks_for, seconds_of
from benchmarks.record import Target
from scheduling.batch_time import chunk_attention

# Of the measured rate of products, for chunks of this many tokens and more.
LEAST_SHARE, LEAST_TOKENS = 0.65, 1024
# (where it begins, tokens), the most telling first.
_CHUNKS = (
    *((0, 2048), (0, 8192), (0, 1024), (0, 4096), (8192, 2048)),
    *((0, 512), (0, 16_384), (0, 256)),
)


def measure_prefill(setup: EngineSetup, journal: Journal) -> None:
    """A row for each chunk: where it begins, and its tokens."""
    rates = measure_rates(setup)
    journal.note(rates=asdict(rates), limit=f"{LEAST_SHARE} of the rate of products")
    journal.note(**setup.facts())
    runner = setup.runner(1)
    is_quick = setup.options.is_quick
    for start, num_tokens in ((0, 64), (64, 32)) if is_quick else _CHUNKS:
        name = f"{num_tokens} tokens from {start}"
        item = Pass(0, 0, start, num_tokens)
        if blocks_for(item.lengths()) > setup.pool.num_blocks:
            journal.skip(name, f"{start + num_tokens} tokens do not fit in memory")
            continue
        if not journal.has_time(name):
            continue
        seconds = statistics.median(seconds_of(runner, item, 2 if is_quick else 7, setup.clock))
        flops = _layer_flops(setup, num_tokens) + _attention_flops(setup, start, num_tokens)
        share = flops / seconds / rates.flops
        row = {
            "start": start,
            "tokens": num_tokens,
            "ms": 1e3 * seconds,
            "tokens_per_s": num_tokens / seconds,
            "flops": flops,
            "of_product_rate": share,
            "of_product_rate_without_attention": _layer_flops(setup, num_tokens)
            / seconds
            / rates.flops,
        }
        print(f"prefill {name}: {1e3 * seconds:.2f} ms, {share:.2f} of the rate", flush=True)
        is_judged = num_tokens >= LEAST_TOKENS and not is_quick
        what = f"prefill of {name}, share of the rate of products"
        journal.row(row, *([Target(what, (share,), LEAST_SHARE)] if is_judged else []))


def _layer_flops(setup: EngineSetup, num_tokens: int) -> float:
    """And the output matrix for one row."""
    weights = num_tokens * setup.layer_weight_bytes()
    weights += setup.weight_bytes() - setup.layer_weight_bytes()
    return 2 * weights / setup.model.dtype.itemsize


def _attention_flops(setup: EngineSetup, start: int, num_tokens: int) -> float:
    """Scores and weighted values of what each query sees, no more."""
    config = setup.model.config
    pairs = chunk_attention(start, num_tokens)
    return 4 * pairs * config.num_heads * config.head_dim * config.num_layers
