"""The lives of one child process, on real processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deploy.local.child import ChildProcess

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0
SERVES = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready", flush=True)
while True:
    signal.pause()
"""
# A parent that says its child's process id and then waits to be killed.
PARENT = """
import os, signal, sys
from pathlib import Path
from deploy.local.child import ChildProcess
child = ChildProcess("c", [sys.executable, "-c", sys.argv[1]], os.environ, Path(sys.argv[2]))
child.start()
print(child.pid, flush=True)
signal.pause()
"""

MakeChild = Callable[[str], ChildProcess]


@pytest.fixture
def make_child(tmp_path: Path) -> Iterator[MakeChild]:
    made: list[ChildProcess] = []

    def make(program: str) -> ChildProcess:
        command = [sys.executable, "-c", program]
        child = ChildProcess("decode-0", command, dict(os.environ), tmp_path / "decode-0.log")
        made.append(child)
        return child

    yield make
    for child in made:
        if child.is_running:
            child.kill()


def wait_for_line(log_path: Path, line: str, count: int = 1) -> None:
    """Follow the log through a tail that ends by itself."""
    command = f"until [ $(grep -c '^{line}$' {log_path}) -ge {count} ]; do sleep 0.02; done"
    subprocess.run(["sh", "-c", command], timeout=PATIENCE_S, check=True)


async def test_a_child_that_is_asked_to_end_ends_well(make_child: MakeChild) -> None:
    child = make_child(SERVES)
    child.start()
    wait_for_line(child.log_path, "ready")
    assert child.is_running
    child.terminate()
    assert await child.wait_ended(PATIENCE_S)
    assert child.ended_well


async def test_a_child_that_was_asked_before_it_could_listen_ends_well_too(
    make_child: MakeChild,
) -> None:
    child = make_child("import signal; signal.pause()")
    child.start()
    child.terminate()
    assert await child.wait_ended(PATIENCE_S)
    assert child.ended_well


async def test_a_signal_from_somebody_else_is_no_good_end(make_child: MakeChild) -> None:
    child = make_child("import signal; signal.pause()")
    child.start()
    os.kill(child.pid, signal.SIGTERM)
    assert await child.wait_ended(PATIENCE_S)
    assert not child.ended_well
    assert "was ended by SIGTERM" in child.ending().message


async def test_the_log_of_a_child_that_was_killed_is_no_reason(make_child: MakeChild) -> None:
    child = make_child("import signal; print('slow disk', flush=True); signal.pause()")
    child.start()
    wait_for_line(child.log_path, "slow disk")
    os.kill(child.pid, signal.SIGKILL)
    assert await child.wait_ended(PATIENCE_S)
    assert child.ending().message == f"decode-0 was ended by SIGKILL; its log is {child.log_path}"


async def test_a_child_that_fails_says_why_and_where_its_log_is(make_child: MakeChild) -> None:
    child = make_child("raise SystemExit('decode: no room; lower kv_cache_mib')")
    child.start()
    assert await child.wait_ended(PATIENCE_S)
    assert not child.ended_well
    assert child.ending().message == (
        "decode-0 ended with status 1: decode: no room; lower kv_cache_mib; "
        f"its log is {child.log_path}"
    )


async def test_a_restarted_child_is_another_process_with_the_same_log(
    make_child: MakeChild,
) -> None:
    child = make_child(SERVES)
    child.start()
    wait_for_line(child.log_path, "ready")
    first_pid = child.pid
    child.restart()
    wait_for_line(child.log_path, "ready", count=2)
    assert child.pid != first_pid
    assert not psutil.pid_exists(first_pid)


async def test_waiting_for_the_end_of_a_child_is_bounded(make_child: MakeChild) -> None:
    child = make_child(SERVES)
    child.start()
    assert not await child.wait_ended(0.05)


def test_a_running_child_is_not_started_twice(make_child: MakeChild) -> None:
    child = make_child(SERVES)
    child.start()
    with pytest.raises(RuntimeError, match="stop it first"):
        child.start()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no death signal")
def test_a_child_goes_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    log_path = tmp_path / "c.log"
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, SERVES, str(log_path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        wait_for_line(log_path, "ready")
        parent.kill()
    gone, alive = psutil.wait_procs([child], timeout=PATIENCE_S)
    assert (gone, alive) == ([child], [])
