"""A process whose name a live one has ends with one line that says so, and nothing else."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cluster.membership import MemberRecord, RouterRecord, WorkerRecord
from cluster.process_identity import this_process
from cluster.redis_connection import connect
from cluster.redis_membership import RedisMembership
from deploy.local.redis import make_run_folder, start_own
from deploy.local.settings import ROOT
from scheduling.ids import Incarnation, RouterId, WorkerId

WORKER = WorkerRecord(
    WorkerId("decode-0"), Incarnation(1), "decode", "127.0.0.1:1", 8, 16, "c", "m", "f", 0,
    this_process(),
)  # fmt: skip
ROUTER = RouterRecord(RouterId("router-0"), Incarnation(1), "127.0.0.1:1", "f", 0, this_process())
TIMEOUT_S = 120.0


def run(module: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", module, *arguments],
        check=False,
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


@pytest.mark.slow
@pytest.mark.parametrize("module", ["decode_worker", "router"])
async def test_a_taken_name_is_said_in_one_line(module: str, model_folder: Path) -> None:
    redis = await start_own(make_run_folder())
    connection = await connect(redis.url)
    try:
        owner: MemberRecord = WORKER if module == "decode_worker" else ROUTER
        await RedisMembership(connection, cluster="tandem").register(owner, TIMEOUT_S)
        arguments = (f"--model={model_folder}", f"--redis-url={redis.url}", "--port=0")
        ended = await asyncio.to_thread(run, module, arguments)
    finally:
        await connection.close()
        await redis.stop()
    assert ended.returncode == 1
    assert f"{owner.name} is in use by process {os.getpid()}" in ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
