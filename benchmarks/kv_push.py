"""How fast KV blocks move through shared memory, against one plain memcpy of the same bytes.

    python -m benchmarks.kv_push [--json] [--max-mib 256]

The receiver's mapping and the sender's are separate, as they are between processes; both run in
this one. `memcpy` is a single contiguous numpy copy between private memory: the physical limit.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

from kvtransfer.batches import PushSettings
from kvtransfer.protocol import BlockMoves
from kvtransfer.receiver import PoolReceiver
from kvtransfer.shared_memory import SharedMemoryTransport

BLOCK_BYTES = (4 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20)
NUM_BLOCKS = (1, 16, 256, 1024)
FRACTIONS = (0.0, 1 / 16, 1.0)
TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Row:
    """One case; speeds in MB/s (10**6 bytes), the best of several rounds."""

    block_bytes: int
    num_blocks: int
    is_scattered: bool
    num_copies: int
    memcpy_mb_per_s: float
    # By checksum fraction: none, the default sample, all.
    push_mb_per_s: float
    push_sampled_mb_per_s: float
    push_checked_mb_per_s: float
    # The receiver's first poll of the whole transfer, without and with every checksum.
    poll_us: float
    poll_checked_us: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one JSON array on stdout")
    parser.add_argument("--max-mib", type=int, default=256, help="leave out larger transfers")
    options = parser.parse_args()
    rows = []
    if not options.json:
        print(_header())
    for row in _measure_all(options.max_mib << 20):
        rows.append(row)
        if not options.json:
            print(_line(row), flush=True)
    if options.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=2)
        print()


def _measure_all(max_bytes: int) -> Iterator[Row]:
    for block_bytes in BLOCK_BYTES:
        for num_blocks in NUM_BLOCKS:
            if block_bytes * num_blocks > max_bytes:
                continue
            for is_scattered in (False, True) if num_blocks > 1 else (False,):
                yield _measure(block_bytes, num_blocks, is_scattered)


def _measure(block_bytes: int, num_blocks: int, is_scattered: bool) -> Row:
    num_bytes = block_bytes * num_blocks
    source = np.arange(num_bytes // 8, dtype=np.uint64).view(np.uint8)
    src = tuple(range(num_blocks))
    dst = list(src)
    if is_scattered:
        random.Random(num_blocks).shuffle(dst)
    receiver = SharedMemoryTransport().create_receiver(
        num_blocks, block_bytes, f"benchmark-{os.getpid()}", 1
    )
    rounds = max(5, min(200, (64 << 20) // num_bytes))
    pushes = {
        fraction: _best_push(receiver, source, (src, tuple(dst)), fraction, rounds)
        for fraction in FRACTIONS
    }
    receiver.close()
    plain, sampled, checked = (num_bytes / pushes[fraction][0] / 1e6 for fraction in FRACTIONS)
    return Row(
        block_bytes=block_bytes,
        num_blocks=num_blocks,
        is_scattered=is_scattered,
        num_copies=pushes[0.0][2],
        memcpy_mb_per_s=num_bytes / _best_memcpy(source, rounds) / 1e6,
        push_mb_per_s=plain,
        push_sampled_mb_per_s=sampled,
        push_checked_mb_per_s=checked,
        poll_us=pushes[0.0][1] * 1e6,
        poll_checked_us=pushes[1.0][1] * 1e6,
    )


def _best_push(
    receiver: PoolReceiver,
    source: "np.ndarray[tuple[int], np.dtype[np.uint8]]",
    pairs: tuple[tuple[int, ...], tuple[int, ...]],
    fraction: float,
    rounds: int,
) -> tuple[float, float, int]:
    """Seconds of the best push, of the best first poll, and the number of copies."""
    export = receiver.export()
    transport = SharedMemoryTransport(settings=PushSettings(checksum_fraction=fraction))
    sender = transport.connect(export, sender_id="benchmark", block_bytes=export.block_bytes)
    src, dst = pairs
    ids = np.array(dst)
    best_push_s = best_poll_s = float("inf")
    num_copies = 0
    for _ in range(rounds):
        generations = (next(_generations),) * len(dst)
        tags = np.array(generations)
        receiver.expect(ids, tags)
        moves = BlockMoves("benchmark", src, dst, generations)
        started = time.perf_counter()
        receipt = sender.push(source.data, moves, timeout_s=TIMEOUT_S)
        pushed = time.perf_counter()
        arrival = receiver.poll(ids, tags)
        polled = time.perf_counter()
        if not arrival.is_complete:
            raise SystemExit("a push did not arrive")
        best_push_s = min(best_push_s, pushed - started)
        best_poll_s = min(best_poll_s, polled - pushed)
        num_copies = receipt.num_copies
    sender.close()
    return best_push_s, best_poll_s, num_copies


def _count_from_one() -> Iterator[int]:
    number = 0
    while True:
        number += 1
        yield number


_generations = _count_from_one()


def _best_memcpy(source: "np.ndarray[tuple[int], np.dtype[np.uint8]]", rounds: int) -> float:
    target = np.ones_like(source)

    def copy() -> None:
        target[:] = source

    return min(_timed(copy) for _ in range(rounds))


def _timed(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _header() -> str:
    return (
        f"{'block':>8} {'blocks':>6} {'order':>10} {'copies':>6} {'memcpy':>8} {'push':>8} "
        f"{'%':>4} {'1/16':>8} {'all':>8} {'poll us':>8} {'all us':>8}"
    )


def _line(row: Row) -> str:
    order = "scattered" if row.is_scattered else "contiguous"
    share = 100 * row.push_mb_per_s / row.memcpy_mb_per_s
    return (
        f"{row.block_bytes >> 10:>5} KiB {row.num_blocks:>6} {order:>10} {row.num_copies:>6} "
        f"{row.memcpy_mb_per_s:>8.0f} {row.push_mb_per_s:>8.0f} {share:>4.0f} "
        f"{row.push_sampled_mb_per_s:>8.0f} {row.push_checked_mb_per_s:>8.0f} "
        f"{row.poll_us:>8.1f} {row.poll_checked_us:>8.0f}"
    )


if __name__ == "__main__":
    main()
