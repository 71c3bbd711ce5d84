"""A task, and somebody who does not wait for it."""

import asyncio

from deploy.local.race import first_of


async def test_a_task_that_ends_first_is_left_to_the_caller_and_nobody_is_told() -> None:
    told: list[str] = []
    task = asyncio.create_task(asyncio.sleep(0, "done"))
    assert await first_of(task, asyncio.Event(), lambda: told.append("stopped"))
    assert (task.result(), told) == ("done", [])


async def test_who_stops_it_is_told_before_it_cleans_up() -> None:
    told: list[str] = []
    stop = asyncio.Event()

    async def work() -> None:
        try:
            stop.set()
            await asyncio.Event().wait()
        finally:
            told.append("cleaned up")

    task = asyncio.create_task(work())
    assert not await first_of(task, stop, lambda: told.append("stopped"))
    assert told == ["stopped", "cleaned up"]
