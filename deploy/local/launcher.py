"""From a command line to an exit code: options, signals, and the command itself."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from deploy.local.cluster import LocalCluster
from deploy.local.demo import demo
from deploy.local.options import LaunchOptions, parse_options
from deploy.local.output import progress, say_error, say_news_as_json
from deploy.local.up import up
from engine.bundled import BundledModelDamaged, verify_bundled_model
from runtime.errors import StartupError
from runtime.process import EXIT_INTERRUPTED

# The last one is a terminal that was closed, unless `nohup` has it ignored.
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: Sequence[str]) -> int:
    """Run `up` or `demo`; every failure is one line on stderr."""
    try:
        options = parse_options(argv)
        if options.is_bundled_model:
            verify_bundled_model()
        with asyncio.Runner() as runner:
            return runner.run(_run(options))
    except BundledModelDamaged as error:
        say_error(str(error))
        return 1
    except StartupError as error:
        say_error(error.message)
        return error.exit_code
    except BrokenPipeError:
        # As with `| head`. What is left in the buffer has no reader, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


async def _run(options: LaunchOptions) -> int:
    # For programs, what they may want to show is JSON as well.
    tell_news = say_news_as_json if options.as_json else None
    cluster = LocalCluster(options.settings, progress, tell_news)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _STOP_SIGNALS:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue
        loop.add_signal_handler(number, _on_signal, number, cluster, stop)
    command = up if options.command == "up" else demo
    return await command(options, cluster, stop)


def _on_signal(number: signal.Signals, cluster: LocalCluster, stop: asyncio.Event) -> None:
    if not stop.is_set():
        stop.set()
        return
    if number != signal.SIGINT:
        # Only a person asks twice. `timeout` and supervisors send one wish to the process and to
        # its group.
        return
    progress("killed; logs that are kept may be cut short")
    cluster.kill()
    # Redis ends with this process (cluster/redis_server.py).
    os._exit(EXIT_INTERRUPTED)
