"""Memory of each process, at rest and with a long queue, and how soon a cluster gives a token."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.router_load.client import Load, LoadClient
from benchmarks.router_load.http2 import ConnectionBroke
from benchmarks.router_load.processes import memory_of, resident_mib
from benchmarks.router_load.targets import (
    START_TIMEOUT_S,
    RouterOptions,
    free_port,
    our_router,
    process,
)

_QUEUE_TIMEOUT_S = 120.0
# Until what a start leaves behind is over.
_SETTLE_S = 2.0


def queue_memory(options: RouterOptions, num_queued: int) -> dict[str, float]:
    """MiB of router and Redis at rest and with so many requests that no worker answers."""
    roomy = replace(options, arguments=(*options.arguments, "--max-prompt-queue", "100000"))
    with our_router(roomy, 0.0, is_silent=True) as target:
        pids = {"router": target.pid, "redis": target.redis_pid}
        at_rest_mib = resident_mib(target.pid)
        found = memory_of(pids, "with_fake_workers")
        client = LoadClient(target.port, Load(num_queued, 64))
        began_at_s = time.perf_counter()
        # The first message of a stream says that the request was accepted.
        while client.tally.num_messages < num_queued:
            if time.perf_counter() - began_at_s > _QUEUE_TIMEOUT_S or client.tally.num_requests:
                raise SystemExit(f"only {client.tally.num_messages} requests were accepted")
            client.run_until(time.perf_counter() + 0.2)
        queued_mib = resident_mib(target.pid)
        accepted_s = time.perf_counter() - began_at_s
        found |= memory_of(pids, f"with_{num_queued}_queued")
        client.close()
    return {
        **found,
        "kib_per_queued_request": 1024 * (queued_mib - at_rest_mib) / num_queued,
        "accepted_per_s": num_queued / accepted_s,
    }


def cluster_footprint() -> dict[str, float]:
    """Seconds from `up` with the bundled model to the first token, nothing warm; then the memory
    of each process."""
    port = free_port()
    command = (sys.executable, "-m", "deploy.local", "up", "--json", "--port", str(port))
    with TemporaryDirectory(prefix="tandem-") as folder:
        began_at_s = time.perf_counter()
        log = Path(folder) / "up.log"
        with process(command, None, log) as launcher:
            while time.perf_counter() - began_at_s < START_TIMEOUT_S:
                try:
                    client = LoadClient(port, Load(1, 1))
                    client.run_until(time.perf_counter() + 5.0, max_requests=1)
                except (OSError, ConnectionBroke):
                    time.sleep(0.05)
                    continue
                client.close()
                if client.tally.num_tokens:
                    first_s = time.perf_counter() - began_at_s
                    pids = {"launcher": launcher, **_pids_in(log, launcher)}
                    time.sleep(_SETTLE_S)
                    return {"cluster_first_token_s": first_s, **memory_of(pids, "at_rest")}
                time.sleep(0.05)
            last = log.read_text(errors="replace")[-2000:]
            raise SystemExit(f"no token from the cluster within {START_TIMEOUT_S:g} s\n{last}")


def _pids_in(log: Path, launcher: int) -> dict[str, int]:
    """What `up --json` says when all is ready, which is about when the first token comes."""
    deadline_at_s = time.perf_counter() + START_TIMEOUT_S
    while time.perf_counter() < deadline_at_s:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith("{") and line.endswith("}") and '"pids"' in line:
                pids: dict[str, int] = json.loads(line)["pids"]
                return pids | _others_of(launcher, pids)
        time.sleep(0.05)
    raise SystemExit("the cluster did not say that it is ready")


def _others_of(launcher: int, known: dict[str, int]) -> dict[str, int]:
    """Children that are not named there: the ledger's server."""
    children = psutil.Process(launcher).children(recursive=True)
    return {child.name(): child.pid for child in children if child.pid not in known.values()}
