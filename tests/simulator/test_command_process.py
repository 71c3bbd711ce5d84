"""`python -m simulator` as a process: the same bytes every time, and Ctrl-C."""

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.clock import MonotonicClock

ROOT = Path(__file__).parents[2]
PATIENCE_S = 120.0

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `python -m simulator ARGUMENTS`; what still runs at the end is killed."""
    processes: list[subprocess.Popen[bytes]] = []

    def run(
        *arguments: str, hash_seed: str = "0", stderr: int = subprocess.PIPE
    ) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [sys.executable, "-m", "simulator", *arguments],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,  # a group of its own, as of a shell's job
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def children_of(pid: int) -> set[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return {int(word) for word in text.split()}


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    # After the name, in parentheses: Z where it has ended, and its parent has not asked.
    return stat.rpartition(")")[2].split()[0] != "Z"


def until(question: Callable[[], bool]) -> None:
    clock = MonotonicClock()
    ends_at_s = clock.now() + PATIENCE_S
    while not question():
        assert clock.now() < ends_at_s


def trace_of(folder: Path, num_requests: int) -> Path:
    """Lengths only: arrivals are drawn."""
    path = folder / "lengths.csv"
    rows = [f"{10 + 71 * n % 1500},{1 + 29 * n % 150}" for n in range(num_requests)]
    path.write_text("\n".join(["prompt_tokens,output_tokens", *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    "command",
    [
        ["simulate", "--policy", "default,ecoserve,fcfs,distserve,oracle", "--cluster", "3",
         "--rate", "20,60", "--slo", "class:a@0.5:ttft=3x; class:b@0.5:jct=10x"],
        ["simulate", "--policy", "default,fcfs", "--rate", "40", "--search-goodput",
         "--slo", "ttft=3x+-50%"],
        ["plan", "--policy", "default,distserve", "--rate", "40",
         "--slo", "ttft=200ms,tpot=20ms", "--max-workers", "6"],
    ],
)  # fmt: skip
def test_the_same_seed_gives_the_same_bytes_in_another_process_and_by_runs_side_by_side(
    start: Start, tmp_path: Path, command: list[str]
) -> None:
    trace = trace_of(tmp_path, 100)
    written = []
    # Both differ, and neither may matter.
    for hash_seed, jobs in (("1", "1"), ("2", "3")):
        file = tmp_path / f"{hash_seed}.json"
        process = start(*command, "--trace", str(trace), "--hardware", "h200", "--seed", "7",
                        "--jobs", jobs, "--json", str(file), hash_seed=hash_seed)  # fmt: skip
        stdout, stderr = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, stderr.decode()
        # Where a run takes longer than ten seconds, stderr says how far it is, by the real clock.
        notes = [line for line in stderr.splitlines() if b" real time" not in line]
        written.append((file.read_bytes(), stdout, notes))
    for one, other in zip(*written, strict=True):
        assert one == other


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c_ends_a_run_with_one_line_and_writes_nothing(
    start: Start, tmp_path: Path, jobs: str
) -> None:
    trace, file = trace_of(tmp_path, 20_000), tmp_path / "out.json"
    master, slave = pty.openpty()
    try:
        process = start("--trace", str(trace), "--rate", "50", "--hardware", "h200",
                        "--policy", "default,fcfs", "--jobs", jobs,
                        "--json", str(file), stderr=slave)  # fmt: skip
        seen = b""
        while b"real time" not in seen:
            ready, _, _ = select.select([master], [], [], PATIENCE_S)
            assert ready, f"no progress was shown, only {seen!r}"
            seen += os.read(master, 4096)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(PATIENCE_S) == 130
        assert b"stopped; nothing was written" in os.read(master, 65536)
    finally:
        os.close(slave)
        os.close(master)
    assert process.stdout is not None
    assert process.stdout.read() == b""
    assert not file.exists()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_ctrl_c_while_processes_are_begun_ends_with_one_line(start: Start, tmp_path: Path) -> None:
    process = start("--trace", str(trace_of(tmp_path, 20_000)), "--rate", "50", "--hardware",
                    "h200", "--policy", "default,fcfs", "--jobs", "2", "--quiet")  # fmt: skip
    # Of these the first looks after what the others leave behind.
    until(lambda: len(children_of(process.pid)) >= 2)
    os.killpg(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stderr) == (130, b"\nstopped; nothing was written\n")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_no_run_goes_on_for_a_command_that_was_killed(start: Start, tmp_path: Path) -> None:
    process = start("--trace", str(trace_of(tmp_path, 20_000)), "--rate", "50", "--hardware",
                    "h200", "--policy", "default,fcfs", "--jobs", "2", "--quiet")  # fmt: skip
    until(lambda: len(children_of(process.pid)) == 3)
    children = children_of(process.pid)
    process.kill()
    until(lambda: not any(is_running(pid) for pid in children))


def test_a_reader_that_leaves_ends_the_command_quietly(start: Start, tmp_path: Path) -> None:
    process = start("--trace", str(trace_of(tmp_path, 50)), "--rate", "50", "--hardware", "h200",
                    "--quiet")  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.wait(PATIENCE_S) == 1
    assert process.stderr.read() == b""
