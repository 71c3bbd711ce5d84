"""Memory of a router, at rest and with a long queue, and how soon a cluster gives a token."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.router_load.client import Load, LoadClient
from benchmarks.router_load.http2 import ConnectionBroke
from benchmarks.router_load.processes import resident_mib
from benchmarks.router_load.targets import (
    START_TIMEOUT_S,
    RouterOptions,
    free_port,
    our_router,
    process,
)

_QUEUE_TIMEOUT_S = 120.0


def queue_memory(options: RouterOptions, num_queued: int) -> dict[str, float]:
    """Resident MiB at rest and with so many requests that no worker answers."""
    roomy = replace(options, arguments=(*options.arguments, "--max-prompt-queue", "100000"))
    with our_router(roomy, 0.0, is_silent=True) as target:
        at_rest_mib = resident_mib(target.pid)
        client = LoadClient(target.port, Load(num_queued, 64))
        began_at_s = time.perf_counter()
        # The first message of a stream says that the request was accepted.
        while client.tally.num_messages < num_queued:
            if time.perf_counter() - began_at_s > _QUEUE_TIMEOUT_S or client.tally.num_requests:
                raise SystemExit(f"only {client.tally.num_messages} requests were accepted")
            client.run_until(time.perf_counter() + 0.2)
        queued_mib = resident_mib(target.pid)
        accepted_s = time.perf_counter() - began_at_s
        client.close()
    return {
        "router_at_rest_mib": at_rest_mib,
        f"router_with_{num_queued}_queued_mib": queued_mib,
        "kib_per_queued_request": 1024 * (queued_mib - at_rest_mib) / num_queued,
        "accepted_per_s": num_queued / accepted_s,
    }


def cluster_first_token_s() -> float:
    """From `up` with the bundled model to the first token: all processes, nothing warm."""
    port = free_port()
    command = (sys.executable, "-m", "deploy.local", "up", "--port", str(port))
    with TemporaryDirectory(prefix="tandem-") as folder:
        began_at_s = time.perf_counter()
        with process(command, None, Path(folder) / "up.log"):
            while time.perf_counter() - began_at_s < START_TIMEOUT_S:
                try:
                    client = LoadClient(port, Load(1, 1))
                    client.run_until(time.perf_counter() + 5.0, max_requests=1)
                except (OSError, ConnectionBroke):
                    time.sleep(0.05)
                    continue
                client.close()
                if client.tally.num_tokens:
                    return time.perf_counter() - began_at_s
                time.sleep(0.05)
            log = (Path(folder) / "up.log").read_text(errors="replace")
            raise SystemExit(
                f"no token from the cluster within {START_TIMEOUT_S:g} s\n{log[-2000:]}"
            )
