"""What it costs to ask the kernel to send KV without a copy, on a device where it copies anyway.

    python -m benchmarks.kv_push_zerocopy [--rounds 99]

Sender and receiver are two processes, joined by the loopback device. `never` is today's plain send
and has two turns a round ("never again" shows how far a ratio can be trusted), `auto` gives up
after one send, `insist` does not. CPU time of both processes; ratios within a round.
"""

import argparse
import mmap
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection

from benchmarks.record import spread
from kvtransfer.batches import PushSettings
from kvtransfer.protocol import BlockMoves, KvReceiver, KvSender
from kvtransfer.tcp import TcpTransport
from kvtransfer.zerocopy import ZeroCopy
from scheduling.kv_export import KvExport

# Bytes of a block, and how many.
SHAPES = ((64 << 10, 16), (64 << 10, 256), (256 << 10, 256))
USES = {
    "never": ZeroCopy.NEVER,
    "never again": ZeroCopy.NEVER,
    "auto": ZeroCopy.AUTO,
    "insist": ZeroCopy.INSIST,
}
TIMEOUT_S = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=99, help="turns of each")
    rounds = parser.parse_args().rounds
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_send, args=(theirs,), daemon=True)
    child.start()
    theirs.close()
    print(f"CPU ms of both processes a push, medians of {rounds} rounds; ratios to `never`: median")
    print("and quartiles. `first`: the first push of a connection, half as many rounds")
    for block_bytes, num_blocks in SHAPES:
        for is_first in (False, True):
            _measure(
                ours, (block_bytes, num_blocks), max(1, rounds // (2 if is_first else 1)), is_first
            )
    ours.send(None)
    child.join(TIMEOUT_S)


def _measure(child: Connection, shape: tuple[int, int], rounds: int, is_first: bool) -> None:
    block_bytes, num_blocks = shape
    settings = PushSettings(checksum_fraction=0.0)
    receivers = {
        name: TcpTransport(settings=settings).create_receiver(
            num_blocks, block_bytes, f"benchmark-{os.getpid()}", number
        )
        for number, name in enumerate(USES, start=1)
    }
    cpu_ms: dict[str, list[float]] = {name: [] for name in USES}
    # Every second block, turned round: each is a span of its own.
    dst = (*range(0, num_blocks, 2), *range(1, num_blocks, 2))
    for generation in range(1, rounds + 3):
        moves = BlockMoves("benchmark", tuple(range(num_blocks)), dst, (generation,) * num_blocks)
        names = list(USES)
        # Each begins in its turn: who comes first finds other caches than who comes last.
        for name in names[generation % 4 :] + names[: generation % 4]:
            cpu_ms[name].append(1e3 * _push(child, receivers[name], name, moves, is_first))
    for receiver in receivers.values():
        receiver.close()
    # The first two rounds map pages, and try zero copy.
    taken = {name: all_taken[2:] for name, all_taken in cpu_ms.items()}
    what = f"{num_blocks} of {block_bytes >> 10} KiB{', first' if is_first else ''}"
    for name, each in taken.items():
        ratios = [mine / plain for mine, plain in zip(each, taken["never"], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        print(
            f"{what:>22} {name:>12} {spread(each, 2):>20} ms, {middle:5.2f} ({low:.2f}-{high:.2f})",
            flush=True,
        )


def _push(
    child: Connection, receiver: KvReceiver, name: str, moves: BlockMoves, is_first: bool
) -> float:
    receiver.expect(moves.dst_block_ids, moves.generations)
    before_s = time.process_time()
    child.send((receiver.export(), name, moves, is_first))
    theirs_s: float = child.recv()
    taken_s = theirs_s + time.process_time() - before_s
    if not receiver.poll(moves.dst_block_ids, moves.generations).is_complete:
        raise SystemExit("a push did not arrive")
    return taken_s


def _send(parent: Connection) -> None:
    """The other process: does what it is told, answers with the CPU seconds of the push."""
    senders: dict[KvExport, KvSender] = {}
    pool = memoryview(mmap.mmap(-1, max(size * count for size, count in SHAPES)))
    pool[:] = b"\x5a" * len(pool)
    while (order := parent.recv()) is not None:
        export, name, moves, is_first = order
        if is_first and export in senders:
            senders.pop(export).close()
        if export not in senders:
            settings = PushSettings(checksum_fraction=0.0, zerocopy=USES[name])
            senders[export] = TcpTransport(settings=settings).connect(
                export, sender_id="benchmark", block_bytes=export.block_bytes
            )
        before_s = time.process_time()
        senders[export].push(
            pool[: export.block_bytes * moves.num_blocks], moves, timeout_s=TIMEOUT_S
        )
        parent.send(time.process_time() - before_s)


if __name__ == "__main__":
    main()
