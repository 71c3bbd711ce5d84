"""Servers of others under measurement: what of them is left when they are ended."""

import asyncio
import subprocess
import sys
from pathlib import Path

from benchmarks.end_to_end.vllm_servers import server_process

# Ends when the server has, and only then tidies up, by a process of its own that takes a while.
_CHILD = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
sys.stdin.read()
tidy = "import pathlib, sys; pathlib.Path(sys.argv[1]).unlink()"
subprocess.run([sys.executable, "-c", tidy, sys.argv[1]], check=True)
"""
_SERVER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], stdin=subprocess.PIPE)
child.wait()
"""


def test_children_of_an_ended_server_tidy_up_before_they_are_killed(tmp_path: Path) -> None:
    memory, log = tmp_path / "psm", tmp_path / "log"
    memory.touch()
    command = [sys.executable, "-c", _SERVER, _CHILD, str(memory)]

    async def run() -> None:
        async with asyncio.timeout(30), server_process(command, {}, log):
            while "ready" not in log.read_text():
                await asyncio.to_thread(subprocess.run, ["true"], check=True)

    asyncio.run(run())
    assert not memory.exists()
