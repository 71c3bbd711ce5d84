"""How fast KV blocks move through shared memory, against one plain memcpy of the same bytes.

    python -m benchmarks.kv_push [--quick] [--rounds 9] [--out FILE.json]

In each round memcpy and every push take their turn, in another order; ratios are taken within a
round. The receiver's mapping and the sender's are separate, as they are between processes; both
run in this one. `memcpy` is a single contiguous numpy copy between private memory: the physical
limit. `pieces` is the same copy cut as a push cuts it into batches: beyond a size of its own
(`ld.so --list-tunables`, x86_non_temporal_threshold) glibc copies past the cache, which is faster,
and below it does not.
"""

import argparse
import itertools
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.record import Target, print_targets, spread, write_results
from kvtransfer.batches import PushSettings
from kvtransfer.protocol import BlockMoves, KvSender
from kvtransfer.receiver import PoolReceiver
from kvtransfer.shared_memory import SharedMemoryTransport

BLOCK_BYTES = (4 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20)
NUM_BLOCKS = (1, 16, 256, 1024)
PIECE_BYTES = PushSettings().max_batch_bytes
# By checksum fraction: none, the default sample, all.
PUSHES = {"push": 0.0, "push_sampled": 1 / 16, "push_checked": 1.0}
TIMEOUT_S = 60.0
# Small transfers are repeated within a turn, or the clock would be measured.
TURN_BYTES = 16 << 20
MAX_PER_TURN = 64
# Of memcpy, for a push without checksums.
LEAST_SHARE = 0.95

Bytes = np.ndarray[tuple[int], np.dtype[np.uint8]]
_generations = itertools.count(1)


@dataclass(frozen=True)
class Row:
    """One case; speeds in MB/s (10**6 bytes), one value a round."""

    block_bytes: int
    num_blocks: int
    is_scattered: bool
    num_copies: int
    # By "memcpy", "pieces" and the names of PUSHES.
    mb_per_s: dict[str, list[float]]
    # The receiver's first poll of a whole transfer, by the names of PUSHES: medians.
    poll_us: dict[str, float]

    @property
    def name(self) -> str:
        order = "scattered" if self.is_scattered else "contiguous"
        return f"{self.num_blocks} blocks of {self.block_bytes >> 10} KiB, {order}"

    def shares(self, of: str = "memcpy", what: str = "push") -> list[float]:
        """What the push reached of it in each round."""
        pairs = zip(self.mb_per_s[what], self.mb_per_s[of], strict=True)
        return [mine / theirs for mine, theirs in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each")
    parser.add_argument("--max-mib", type=int, default=256, help="leave out larger transfers")
    parser.add_argument("--quick", action="store_true", help="three rounds, small: a look")
    parser.add_argument("--out", type=Path, help="write all figures there as JSON")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.max_mib = 3, min(options.max_mib, 16)
    rows = []
    print(f"MB/s: median (lowest-highest) of {options.rounds} rounds; shares within a round")
    print(_header())
    for row in _measure_all(options.max_mib << 20, options.rounds):
        rows.append(row)
        print(_line(row), flush=True)
    targets = [
        Target(f"push beside memcpy, {row.name}", tuple(row.shares()), LEAST_SHARE) for row in rows
    ]
    print_targets(targets)
    print(f"{sum(target.is_met for target in targets)} of {len(targets)} cases meet the target")
    if options.out:
        write_results(options.out, {"rows": [asdict(r) for r in rows]}, targets, options.quick)


def _measure_all(max_bytes: int, rounds: int) -> Iterator[Row]:
    for block_bytes in BLOCK_BYTES:
        for num_blocks in NUM_BLOCKS:
            if block_bytes * num_blocks > max_bytes:
                continue
            for is_scattered in (False, True) if num_blocks > 1 else (False,):
                yield _measure(block_bytes, num_blocks, is_scattered, rounds)


def _measure(block_bytes: int, num_blocks: int, is_scattered: bool, rounds: int) -> Row:
    num_bytes = block_bytes * num_blocks
    source = np.arange(num_bytes // 8, dtype=np.uint64).view(np.uint8)
    dst = list(range(num_blocks))
    if is_scattered:
        random.Random(num_blocks).shuffle(dst)
    receiver = SharedMemoryTransport().create_receiver(
        num_blocks, block_bytes, f"benchmark-{os.getpid()}", 1
    )
    pushes = {name: _Pushing(receiver, source, dst, fraction) for name, fraction in PUSHES.items()}
    turns: dict[str, Callable[[], float]] = {
        "memcpy": _copying(source, num_bytes),
        "pieces": _copying(source, PIECE_BYTES),
        **pushes,
    }
    num_per_turn = max(1, min(MAX_PER_TURN, TURN_BYTES // num_bytes))
    mb_per_s: dict[str, list[float]] = {name: [] for name in turns}
    names = list(turns)
    # The first round maps pages.
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds = sum(turns[name]() for _ in range(num_per_turn))
            if number:
                mb_per_s[name].append(num_per_turn * num_bytes / seconds / 1e6)
    for push in pushes.values():
        push.close()
    receiver.close()
    return Row(
        block_bytes=block_bytes,
        num_blocks=num_blocks,
        is_scattered=is_scattered,
        num_copies=pushes["push"].num_copies,
        mb_per_s=mb_per_s,
        poll_us={name: 1e6 * statistics.median(push.polls_s) for name, push in pushes.items()},
    )


class _Pushing:
    """Pushes the source once a call, waits until it is there, and says how long the push took."""

    def __init__(
        self, receiver: PoolReceiver, source: Bytes, dst: Sequence[int], fraction: float
    ) -> None:
        export = receiver.export()
        transport = SharedMemoryTransport(settings=PushSettings(checksum_fraction=fraction))
        self._sender: KvSender = transport.connect(
            export, sender_id="benchmark", block_bytes=export.block_bytes
        )
        self._receiver, self._source = receiver, source
        self._src, self._dst, self._ids = tuple(range(len(dst))), tuple(dst), np.array(dst)
        self.polls_s: list[float] = []
        self.num_copies = 0

    def __call__(self) -> float:
        generations = (next(_generations),) * len(self._dst)
        tags = np.array(generations)
        self._receiver.expect(self._ids, tags)
        moves = BlockMoves("benchmark", self._src, self._dst, generations)
        started = time.perf_counter()
        receipt = self._sender.push(self._source.data, moves, timeout_s=TIMEOUT_S)
        pushed = time.perf_counter()
        arrival = self._receiver.poll(self._ids, tags)
        self.polls_s.append(time.perf_counter() - pushed)
        if not arrival.is_complete:
            raise SystemExit("a push did not arrive")
        self.num_copies = receipt.num_copies
        return pushed - started

    def close(self) -> None:
        """Let go of the receiver's memory."""
        self._sender.close()


def _copying(source: Bytes, piece_bytes: int) -> Callable[[], float]:
    target = np.ones_like(source)

    def copy() -> float:
        started = time.perf_counter()
        for start in range(0, len(source), piece_bytes):
            target[start : start + piece_bytes] = source[start : start + piece_bytes]
        return time.perf_counter() - started

    return copy


def _header() -> str:
    return (
        f"{'block':>8} {'blocks':>6} {'order':>10} {'copies':>6} {'memcpy':>20} {'push':>20} "
        f"{'of memcpy':>17} {'of pieces':>17} {'1/16':>7} {'all':>7} {'poll us':>7} {'all us':>7}"
    )


def _line(row: Row) -> str:
    order = "scattered" if row.is_scattered else "contiguous"
    sampled, checked = (
        statistics.median(row.mb_per_s[name]) for name in ("push_sampled", "push_checked")
    )
    return (
        f"{row.block_bytes >> 10:>4} KiB {row.num_blocks:>6} {order:>10} {row.num_copies:>6} "
        f"{spread(row.mb_per_s['memcpy'], 0):>20} {spread(row.mb_per_s['push'], 0):>20} "
        f"{spread(row.shares(), 2):>17} {spread(row.shares('pieces'), 2):>17} "
        f"{sampled:>7.0f} {checked:>7.0f} "
        f"{row.poll_us['push']:>7.1f} {row.poll_us['push_checked']:>7.0f}"
    )


if __name__ == "__main__":
    main()
