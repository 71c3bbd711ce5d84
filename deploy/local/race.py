"""A task against the wish to stop."""

import asyncio
from collections.abc import Callable
from typing import Any


async def first_of(
    task: asyncio.Task[Any], stop: asyncio.Event, on_stop: Callable[[], None] | None = None
) -> bool:
    """Return True when the task has ended, well or not; its result is the caller's to fetch.

    When `stop` is set first, call `on_stop`, cancel the task, wait for its clean-up and return
    False.
    """
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        if not task.done():
            if on_stop is not None and stop.is_set():
                on_stop()
            task.cancel()
            await asyncio.wait({task})
    return not task.cancelled()
