"""Memory that was freed goes back to the system: once for much of it, and in a pause."""

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

from runtime.heap import HeapTrimmer

PATIENCE_S = 20.0
MIB = 1024 * 1024


class Trims:
    """Counts, on whatever thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.came = asyncio.Semaphore(0)
        self.go_on = threading.Event()
        self.go_on.set()
        self.num_begun = 0

    def __call__(self) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.num_begun += 1
        self._loop.call_soon_threadsafe(self.came.release)
        assert self.go_on.wait(PATIENCE_S)

    async def one_more(self) -> None:
        await asyncio.wait_for(self.came.acquire(), PATIENCE_S)


async def test_much_that_was_freed_bit_by_bit_is_given_back_at_once() -> None:
    trims = Trims()
    heap = HeapTrimmer(trims, pause_s=0.001)
    for _ in range(64):
        heap.freed(MIB)
    await trims.one_more()
    heap.freed(40 * MIB)
    await trims.one_more()
    assert trims.num_begun == 2


async def test_what_is_freed_while_it_trims_is_given_back_afterwards() -> None:
    trims = Trims()
    heap = HeapTrimmer(trims, pause_s=0.0)
    trims.go_on.clear()
    heap.freed(40 * MIB)
    await trims.one_more()
    heap.freed(40 * MIB)
    assert trims.num_begun == 1
    trims.go_on.set()
    await trims.one_more()


async def test_little_is_left_where_it_is() -> None:
    trims = Trims()
    heap, other = HeapTrimmer(trims, pause_s=0.0), Trims()
    heap.freed(MIB)
    also = HeapTrimmer(other, pause_s=0.0)
    also.freed(40 * MIB)
    await other.one_more()
    assert trims.num_begun == 0


async def test_after_the_end_nothing_begins() -> None:
    trims, other = Trims(), Trims()
    heap, also = HeapTrimmer(trims, pause_s=0.0), HeapTrimmer(other, pause_s=0.0)
    heap.freed(40 * MIB)
    heap.close()
    heap.freed(40 * MIB)
    also.freed(40 * MIB)
    await other.one_more()
    assert trims.num_begun == 0


PROGRAM = """
import asyncio, os, sys
from runtime.heap import HeapTrimmer, find_trim

def num_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

async def main():
    heap, before = HeapTrimmer(pause_s=0.0), num_bytes()
    pieces = [bytes(2000) for _ in range(50_000)]
    last = bytes(2000)  # in their way
    del pieces
    kept = num_bytes() - before
    heap.freed(kept)
    async with asyncio.timeout(20):
        while num_bytes() - before > kept / 4:
            await asyncio.sleep(0.01)

if find_trim() is not None and sys.platform == "linux":
    asyncio.run(main())
"""


def test_the_memory_of_many_small_things_goes_back_to_the_system() -> None:
    """In a process of its own: what others do with their heap would be counted as well."""
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, check=True, timeout=60)
