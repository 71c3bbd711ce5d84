"""How fast KV blocks move over TCP, NIXL and gloo, against a plain socket with the same bytes.

    python -m benchmarks.kv_push_network [--quick] [--rounds 9] [--out FILE.json]

Sender and receiver are two processes on this machine. In each round the plain socket (sendall,
recv_into until all is there, one byte back) and every transport take their turn, so that what else
the machine does hits all of them alike; the ratio is taken within a round. The plain socket has two
turns a round: "socket again" shows how far a ratio can be trusted.
"""

import argparse
import itertools
import mmap
import multiprocessing
import os
import random
import socket
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.record import Target, print_targets, spread, write_results
from kvtransfer.batches import PushSettings
from kvtransfer.errors import ExportUnavailable
from kvtransfer.group_transport import GroupTransport
from kvtransfer.nixl import NixlTransport
from kvtransfer.nixl_agent import require_nixl
from kvtransfer.process_group import Gloo
from kvtransfer.protocol import BlockMoves, KvReceiver, KvSender, Transport
from kvtransfer.shared_memory import SharedMemoryTransport
from kvtransfer.tcp import TcpTransport
from scheduling.kv_export import KvExport

# Bytes of a block, and how many.
SHAPES = ((64 << 10, 256), (64 << 10, 4096), (256 << 10, 1024), (4 << 20, 64))
TIMEOUT_S = 60.0
# Of a plain socket. Shared memory, NIXL and gloo stand beside it.
LEAST_SHARE = {"tcp": 0.90}

_lives = itertools.count(1)


@dataclass(frozen=True)
class Order:
    """What the sending process is to do: `export` None means the plain socket."""

    export: KvExport | None
    moves: BlockMoves
    block_bytes: int


@dataclass(frozen=True)
class Row:
    """One transport and one shape; speeds in MB/s (10**6 bytes), one value a round."""

    transport: str
    block_bytes: int
    num_blocks: int
    is_scattered: bool
    socket_mb_per_s: list[float]
    push_mb_per_s: list[float]
    # CPU time of both processes, of the plain socket over that of the push: what is left of the
    # comparison on a busy machine.
    cpu_ratios: list[float]

    @property
    def order(self) -> str:
        return "scattered" if self.is_scattered else "contiguous"

    def ratios(self) -> list[float]:
        """Of the plain socket in the same round."""
        pairs = zip(self.push_mb_per_s, self.socket_mb_per_s, strict=True)
        return [mine / theirs for mine, theirs in pairs]


@dataclass(frozen=True)
class Taken:
    """Seconds of one turn."""

    wall_s: float
    # Of both processes.
    cpu_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9, help="turns of each")
    parser.add_argument("--quick", action="store_true", help="one shape, three rounds: a look")
    parser.add_argument("--out", type=Path, help="write all figures there as JSON")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 3
    rows = []
    print(f"MB/s: median (lowest-highest) of {options.rounds} rounds; ratios within a round")
    print(
        f"{'block':>8} {'blocks':>6} {'order':>10} {'transport':>13} {'socket':>17} {'push':>17} "
        f"{'ratio':>17} {'cpu':>6}"
    )
    for row in _measure_all(SHAPES[:1] if options.quick else SHAPES, options.rounds):
        rows.append(row)
        print(_line(row), flush=True)
    targets = [
        Target(
            f"{row.transport} beside a plain socket, {row.num_blocks} blocks of "
            f"{row.block_bytes >> 10} KiB, {row.order}",
            tuple(row.ratios()),
            LEAST_SHARE[row.transport],
        )
        for row in rows
        if row.transport in LEAST_SHARE
    ]
    print_targets(targets)
    if options.out:
        write_results(options.out, {"rows": [asdict(r) for r in rows]}, targets, options.quick)


def _line(row: Row) -> str:
    return (
        f"{row.block_bytes >> 10:>4} KiB {row.num_blocks:>6} {row.order:>10} "
        f"{row.transport:>13} {spread(row.socket_mb_per_s, 0):>17} "
        f"{spread(row.push_mb_per_s, 0):>17} {spread(row.ratios(), 2):>17} "
        f"{statistics.median(row.cpu_ratios):>6.2f}"
    )


def _transports() -> dict[str, Transport]:
    # No checksums, as the plain socket has none; what they cost is in benchmarks.kv_push.
    settings = PushSettings(checksum_fraction=0.0)
    known: dict[str, Transport] = {
        "shared_memory": SharedMemoryTransport(settings=settings),
        "tcp": TcpTransport(settings=settings),
        "gloo": GroupTransport(Gloo(), settings=settings),
    }
    try:
        require_nixl()
    except ExportUnavailable as error:
        print(error, file=sys.stderr)
    else:
        known["nixl"] = NixlTransport(settings=settings)
    return known


def _measure_all(shapes: Sequence[tuple[int, int]], rounds: int) -> Iterator[Row]:
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_send, args=(theirs,), daemon=True)
    child.start()
    theirs.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours.send(listener.getsockname()[1])
        plain, _ = listener.accept()
        with plain:
            for block_bytes, num_blocks in shapes:
                for is_scattered in (False, True):
                    yield from _measure(
                        ours, plain, (block_bytes, num_blocks, is_scattered), rounds
                    )
    ours.send(None)
    child.join(TIMEOUT_S)


def _measure(
    child: Connection, plain: socket.socket, shape: tuple[int, int, bool], rounds: int
) -> Iterator[Row]:
    block_bytes, num_blocks, is_scattered = shape
    num_bytes = block_bytes * num_blocks
    src = tuple(range(num_blocks))
    dst = list(src)
    if is_scattered:
        random.Random(num_blocks).shuffle(dst)
    receivers = {
        name: transport.create_receiver(
            num_blocks, block_bytes, f"benchmark-{os.getpid()}", next(_lives)
        )
        for name, transport in _transports().items()
    }
    # One for each turn, as each transport has its own: bytes that were written a moment ago are
    # still in the cache, and written faster.
    targets = {name: _zeroed(num_bytes) for name in ("socket", "socket again")}
    seconds: dict[str, list[Taken]] = {name: [] for name in (*targets, *receivers)}
    for generation in range(1, rounds + 2):
        moves = BlockMoves("benchmark", src, tuple(dst), (generation,) * num_blocks)
        names = list(seconds)
        # Each begins in its turn: who comes first finds other caches than who comes last.
        for name in names[generation % len(names) :] + names[: generation % len(names)]:
            if name in receivers:
                seconds[name].append(_push(child, receivers[name], moves))
            else:
                seconds[name].append(_copy_plainly(child, plain, moves, targets[name]))
    for receiver in receivers.values():
        receiver.close()
    # The first round maps pages and wires connections up.
    sockets = seconds.pop("socket")[1:]
    for name, all_taken in seconds.items():
        taken = all_taken[1:]
        yield Row(
            transport=name,
            block_bytes=block_bytes,
            num_blocks=num_blocks,
            is_scattered=is_scattered,
            socket_mb_per_s=[num_bytes / s.wall_s / 1e6 for s in sockets],
            push_mb_per_s=[num_bytes / t.wall_s / 1e6 for t in taken],
            cpu_ratios=[s.cpu_s / t.cpu_s for s, t in zip(sockets, taken, strict=True)],
        )


def _zeroed(num_bytes: int) -> memoryview:
    target = memoryview(mmap.mmap(-1, num_bytes))
    target[:] = bytes(num_bytes)
    return target


def _push(child: Connection, receiver: KvReceiver, moves: BlockMoves) -> Taken:
    ids, tags = np.array(moves.dst_block_ids), np.array(moves.generations)
    receiver.expect(ids, tags)
    before_s = time.process_time()
    child.send(Order(receiver.export(), moves, receiver.export().block_bytes))
    taken = _plus_ours(child.recv(), before_s)
    if not receiver.poll(ids, tags).is_complete:
        raise SystemExit("a push did not arrive")
    return taken


def _copy_plainly(
    child: Connection, plain: socket.socket, moves: BlockMoves, target: memoryview
) -> Taken:
    before_s = time.process_time()
    child.send(Order(None, moves, len(target) // moves.num_blocks))
    offset = 0
    while offset < len(target):
        offset += plain.recv_into(target[offset:])
    plain.sendall(b"k")
    return _plus_ours(child.recv(), before_s)


def _plus_ours(theirs: Taken, before_s: float) -> Taken:
    return Taken(theirs.wall_s, theirs.cpu_s + time.process_time() - before_s)


def _send(parent: Connection) -> None:
    """The other process: does what it is told, answers with the seconds it took."""
    transports = _transports()
    senders: dict[KvExport, KvSender] = {}
    pool = memoryview(mmap.mmap(-1, max(size * count for size, count in SHAPES)))
    pool[:] = b"\x5a" * len(pool)
    with socket.create_connection(("127.0.0.1", parent.recv())) as plain:
        while (order := parent.recv()) is not None:
            num_bytes = order.block_bytes * order.moves.num_blocks
            if order.export is None:
                started, cpu = time.perf_counter(), time.process_time()
                plain.sendall(pool[:num_bytes])
                plain.recv(1)
                parent.send(Taken(time.perf_counter() - started, time.process_time() - cpu))
                continue
            sender = senders.get(order.export)
            if sender is None:
                transport = transports[order.export.transport]
                sender = senders[order.export] = transport.connect(
                    order.export, sender_id="benchmark", block_bytes=order.block_bytes
                )
            started, cpu = time.perf_counter(), time.process_time()
            sender.push(pool[:num_bytes], order.moves, timeout_s=TIMEOUT_S)
            parent.send(Taken(time.perf_counter() - started, time.process_time() - cpu))


if __name__ == "__main__":
    main()
