"""Work on a thread of its own, and a request to stop that does not wait for its end."""

import asyncio
import threading

import pytest

from worker.own_thread import run_unless_stopped

pytestmark = pytest.mark.asyncio

PATIENCE_S = 60.0


async def test_the_result_comes_and_the_thread_is_gone() -> None:
    thread = await run_unless_stopped(threading.current_thread, asyncio.Event(), ignore)
    assert isinstance(thread, threading.Thread)
    assert not thread.is_alive()


async def test_an_error_comes_out() -> None:
    with pytest.raises(ZeroDivisionError):
        await run_unless_stopped(lambda: 1 // 0, asyncio.Event(), ignore)


async def test_who_is_asked_to_stop_does_not_wait_and_what_comes_later_is_given_back() -> None:
    go_on, given_back, stop = threading.Event(), threading.Event(), asyncio.Event()

    def work() -> str:
        assert go_on.wait(PATIENCE_S)
        return "late"

    def give_back(result: str) -> None:
        assert result == "late"
        given_back.set()

    stop.set()
    assert await run_unless_stopped(work, stop, give_back) is None
    assert not given_back.is_set()
    go_on.set()
    assert await asyncio.to_thread(given_back.wait, PATIENCE_S)


async def test_an_error_that_comes_later_gives_nothing_back() -> None:
    go_on, stop, threads = threading.Event(), asyncio.Event(), []

    def work() -> int:
        threads.append(threading.current_thread())
        assert go_on.wait(PATIENCE_S)
        return 1 // 0

    def give_back(result: int) -> None:
        pytest.fail(f"nothing came, not {result}")

    stop.set()
    assert await run_unless_stopped(work, stop, give_back) is None
    go_on.set()
    await asyncio.to_thread(threads[0].join, PATIENCE_S)


def ignore(result: object) -> None:
    """What is not to be given back."""
