"""The life of a process: settings, log, event loop, signals, an orderly end and an exit code.

0: stopped as asked. 1: could not start, or broke. 2: wrong settings. 130: a second Ctrl-C.
"""

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from runtime.config import ProcessConfig, load_config
from runtime.descriptor_limit import raise_descriptor_limit
from runtime.errors import StartupError
from runtime.logging import configure_logging, get_logger

EXIT_INTERRUPTED = 130
# How long cancelled tasks, and after them stuck threads, may take to end.
CLEANUP_TIMEOUT_S = 5.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

AnyConfig = TypeVar("AnyConfig", bound=ProcessConfig)
StopRequested = asyncio.Event


def run_process(
    config_class: type[AnyConfig],
    main: Callable[[AnyConfig, StopRequested], Coroutine[Any, Any, None]],
    argv: Sequence[str] | None = None,
    *,
    cleanup_timeout_s: float = CLEANUP_TIMEOUT_S,
) -> int:
    """Run one process from its settings to its exit code; what `__main__.py` passes to sys.exit.

    `main` serves until the event is set, then drains and returns.
    """
    try:
        config = load_config(config_class, sys.argv[1:] if argv is None else argv)
        ids = {
            name: value
            for name in ("router_id", "worker_id")
            if (value := getattr(config, name, None))
        }
        configure_logging(
            config.process, log_format=config.log_format, level=config.log_level, ids=ids
        )
        get_logger().info("process_starting", pid=os.getpid(), settings=config.masked())
        raise_descriptor_limit()
        code = run_until_stopped(
            lambda stop: main(config, stop),
            name=config.process,
            cleanup_timeout_s=cleanup_timeout_s,
        )
    except StartupError as error:
        code = _say(error.message, error.exit_code)
    except KeyboardInterrupt:
        # Before the loop took the signals over.
        return EXIT_INTERRUPTED
    _exit_within(cleanup_timeout_s, code)
    return code


def run_until_stopped(
    main: Callable[[StopRequested], Coroutine[Any, Any, None]],
    *,
    name: str,
    cleanup_timeout_s: float = CLEANUP_TIMEOUT_S,
) -> int:
    """Run `main` on a fresh event loop (uvloop where there is one) until it returns.

    SIGTERM and SIGINT set the event that `main` gets; a SIGINT after that ends the process at
    once, a SIGTERM changes nothing: whoever means it sends SIGKILL.
    Tasks that `main` left behind are cancelled and awaited, threads of the default executor are
    not waited for. An exception of `main` is logged and gives exit code 1; a StartupError is one
    line on stderr.
    """
    loop = _new_event_loop()
    executor = ThreadPoolExecutor(max_workers=8, thread_name_prefix=f"{name}-io")
    loop.set_default_executor(executor)
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(_supervise(main, name, cleanup_timeout_s))
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        asyncio.set_event_loop(None)
        loop.close()


async def _supervise(
    main: Callable[[StopRequested], Coroutine[Any, Any, None]], name: str, cleanup_timeout_s: float
) -> int:
    log = get_logger()
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in _STOP_SIGNALS:
        loop.add_signal_handler(number, _on_signal, number, stop)
    try:
        await main(stop)
    except (Exception, asyncio.CancelledError) as error:
        # The one broad catch of a process: nothing above could handle it.
        if (startup_error := _startup_error_in(error)) is not None:
            return _say(f"{name}: {startup_error.message}", startup_error.exit_code)
        log.exception("process_failed")
        return 1
    else:
        log.info("process_stopped")
        return 0
    finally:
        await _end_tasks(cleanup_timeout_s)
        for number in _STOP_SIGNALS:
            loop.remove_signal_handler(number)


def _startup_error_in(error: BaseException) -> StartupError | None:
    """The error itself, or the first one that a task group wrapped."""
    if isinstance(error, BaseExceptionGroup):
        found = (_startup_error_in(inner) for inner in error.exceptions)
        return next((inner for inner in found if inner is not None), None)
    return error if isinstance(error, StartupError) else None


def _on_signal(number: signal.Signals, stop: StopRequested) -> None:
    if not stop.is_set():
        get_logger().info("drain_started", signal=number.name)
        stop.set()
    elif number is signal.SIGINT:
        get_logger().warning("process_killed", signal=number.name, hint="second signal")
        sys.stderr.flush()
        os._exit(EXIT_INTERRUPTED)
    # Another SIGTERM changes nothing: supervisors ask twice, and the death signal of a parent with
    # threads may come once for each of them.


async def _end_tasks(timeout_s: float) -> None:
    """Cancel every task but this one; name those that do not end in time."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        _, pending = await asyncio.wait(tasks, timeout=timeout_s)
        if pending:
            names = sorted(task.get_name() for task in pending)
            get_logger().warning("tasks_still_running", tasks=names, waited_s=timeout_s)
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().shutdown_asyncgens()
    except TimeoutError:
        get_logger().warning("generators_still_running", waited_s=timeout_s)


def _new_event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        # Not built for this platform; the standard loop does the same, slower.
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def _say(message: str, exit_code: int) -> int:
    line = " ".join(message.split())
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
    return exit_code


def _exit_within(seconds: float, code: int) -> None:
    """Python joins worker threads at exit; one that hangs must not keep the process alive."""
    watchdog = threading.Timer(seconds, os._exit, args=(code,))
    watchdog.daemon = True
    watchdog.start()
    # The interpreter would look at every object once more before it gives all of them back.
    gc.freeze()
