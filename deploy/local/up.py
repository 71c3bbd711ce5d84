"""`up`: keep a cluster running until it is told to end."""

import asyncio
import json

from deploy.local.cluster import LocalCluster
from deploy.local.keep_alive import KeepAlive
from deploy.local.options import BUNDLED, DEFAULT_PORT, LaunchOptions
from deploy.local.output import print_line, progress, say_error, say_interrupted
from deploy.local.race import first_of
from runtime.errors import StartupError
from runtime.process import EXIT_INTERRUPTED


async def up(options: LaunchOptions, cluster: LocalCluster, stop: asyncio.Event) -> int:
    """Start, say how to use it, wait for `stop`, end in order. Returns the exit code.

    That of an interrupted command where it was not ready yet. Raises: StartupError.
    """
    if not await _start(cluster, stop):
        progress("stopped before it was ready; all processes have ended")
        return EXIT_INTERRUPTED
    code = 0
    try:
        print_line(_ready_json(cluster) if options.as_json else _ready_line(options, cluster))
        await _keep_until(cluster, stop)
    except StartupError as error:
        say_error(error.message)
        code = 1
    finally:
        patience = f"running answers have {cluster.drain_timeout_s:g} s to end"
        progress(f"stopping, {patience}; press Ctrl-C again to kill")
        problems = await cluster.stop()
    for problem in problems:
        say_error(problem)
    return 1 if problems else code


async def _start(cluster: LocalCluster, stop: asyncio.Event) -> bool:
    """False when the user did not wait for the start."""
    starting = asyncio.create_task(cluster.start(), name="start")
    if await first_of(starting, stop, say_interrupted):
        await starting
        return True
    return False


async def _keep_until(cluster: LocalCluster, stop: asyncio.Event) -> None:
    keeping = asyncio.create_task(KeepAlive(cluster, progress).run(), name="keep-alive")
    if await first_of(keeping, stop):
        await keeping


def _ready_line(options: LaunchOptions, cluster: LocalCluster) -> str:
    settings = options.settings
    workers = settings.workers_text
    model = BUNDLED if options.is_bundled_model else cluster.model_name
    is_default = cluster.endpoint == f"127.0.0.1:{DEFAULT_PORT}"
    target = "" if is_default else f"--target {cluster.endpoint} "
    return (
        f"tandem ready on {cluster.endpoint} ({workers}, model {model}) - "
        f'try: tandem generate {target}"The function returns"'
    )


def _ready_json(cluster: LocalCluster) -> str:
    ready = {
        "endpoint": cluster.endpoint,
        "model": cluster.model_name,
        "pids": {child.name: child.pid for child in cluster.processes},
        "log_dir": str(cluster.log_folder),
    }
    return json.dumps(ready, separators=(",", ":"))
