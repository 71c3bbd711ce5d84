"""Work that takes seconds and cannot be broken off, and a process that may be asked to stop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_Result = TypeVar("_Result")


async def run_unless_stopped(
    work: Callable[[], _Result], stop: asyncio.Event, give_back: Callable[[_Result], None]
) -> _Result | None:
    """The result, from a thread that is gone by then; None once `stop` is set before it is there.

    The thread then goes on alone, and hands what comes of its work to `give_back`.
    """
    # A thread that ends takes its OpenMP threads with it. Were they to stay beside those of the
    # engine, OpenMP would count more threads than cores and let none of them spin.
    own_thread = ThreadPoolExecutor(max_workers=1)
    working = own_thread.submit(work)
    own_thread.shutdown(wait=False)
    result, stopping = asyncio.wrap_future(working), asyncio.ensure_future(stop.wait())
    either: list[asyncio.Future[Any]] = [result, stopping]
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
    if result.done():
        own_thread.shutdown()
        return result.result()
    result.cancel()

    def ended(future: Future[_Result]) -> None:
        if future.exception() is None:
            give_back(future.result())

    working.add_done_callback(ended)
    return None
