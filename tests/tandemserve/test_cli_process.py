"""The command as a process: signals, pipes, terminals, and handing over to the launcher."""

import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tandemserve.api.v1 import inference_pb2
from tandemserve.testing import FakeInferenceServer, Hold, accept, say

ROOT = Path(__file__).parents[2]
# Longer than anything here takes; reached only when something hangs.
PATIENCE_S = 120.0

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(server: FakeInferenceServer) -> Iterator[Start]:
    """Starts `tandem ARGUMENTS`; what still runs at the end is killed."""
    processes: list[subprocess.Popen[bytes]] = []

    def run(
        *arguments: str, cwd: Path = ROOT, path: tuple[Path, ...] = (), **streams: Any
    ) -> subprocess.Popen[bytes]:
        search = os.pathsep.join(str(folder) for folder in (*path, ROOT))
        environment = os.environ | {"TANDEM_TARGET": server.target, "PYTHONPATH": search}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tandemserve.cli.main", *arguments],
            cwd=cwd,
            env=environment,
            **(pipes | streams),
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, once the process has ended."""
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    return process.returncode, (stdout or b"").decode(), (stderr or b"").decode()


def test_ctrl_c_stops_the_answer_and_leaves_with_130(
    start: Start, server: FakeInferenceServer
) -> None:
    hold = Hold()
    server.scripts.append([accept(), say(0, [1], "partial"), hold])
    process = start("generate", "x", "--request-id", "r1")
    assert process.stdout is not None
    assert process.stdout.read(7) == b"partial"
    process.send_signal(signal.SIGINT)
    assert ended(process) == (130, "\n", "")
    assert server.wait_until_left("r1")


def test_exit_codes_come_out_of_the_process(start: Start, server: FakeInferenceServer) -> None:
    assert ended(start("version"))[0] == 0
    assert ended(start("generate"))[0] == 2
    server.stop()
    code, stdout, stderr = ended(start("models"))
    assert (code, stdout, stderr.count("\n")) == (3, "", 1)


def test_a_reader_that_leaves_ends_the_request_quietly(
    start: Start, server: FakeInferenceServer
) -> None:
    deltas = [say(i, [1], "x" * 1000) for i in range(1000)]
    server.scripts.append([accept(), *deltas, Hold()])
    process = start("generate", "x", "--request-id", "r1")
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.wait(PATIENCE_S) == 1
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert server.wait_until_left("r1")


@pytest.mark.parametrize("arguments", [["generate", "x", "-m", "5"], ["version"], ["models"]])
def test_a_full_disk_is_one_line(start: Start, arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        code, _, stderr = ended(start(*arguments, stdout=full))
    assert (code, stderr) == (
        1,
        "error: cannot write the output: no space left; make room, or write it elsewhere\n",
    )


def test_a_terminal_that_cannot_show_a_character_shows_a_substitute(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert ended(start("generate", "h\u00e9")) == (0, "h?\n", "")


# --- chat on a terminal -----------------------------------------------------------------------


class Terminal:
    """The other end of a pseudo-terminal."""

    def __init__(self) -> None:
        self._master, self.slave = pty.openpty()
        self._seen = b""

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def wait_for(self, expected: bytes) -> None:
        """Read until the text was shown; what follows it is kept."""
        while expected not in self._seen:
            ready, _, _ = select.select([self._master], [], [], PATIENCE_S)
            assert ready, f"{expected!r} did not appear, only {self._seen!r}"
            self._seen += os.read(self._master, 4096)
        self._seen = self._seen.partition(expected)[2]

    def close(self) -> None:
        os.close(self._master)
        os.close(self.slave)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    yield terminal
    terminal.close()


def talk(start: Start, terminal: Terminal, *arguments: str) -> subprocess.Popen[bytes]:
    slave = terminal.slave
    return start("chat", *arguments, stdin=slave, stdout=slave, stderr=slave)


def test_one_ctrl_c_cancels_the_answer_and_the_talk_goes_on(
    start: Start, server: FakeInferenceServer, terminal: Terminal
) -> None:
    server.scripts.append([accept(), say(0, [1], "partial"), Hold()])
    process = talk(start, terminal)
    terminal.wait_for(b"> ")
    terminal.type(b"hello\n")
    terminal.wait_for(b"partial")
    process.send_signal(signal.SIGINT)
    terminal.wait_for(b"cancelled")
    terminal.wait_for(b"> ")
    first = server.requests[0]
    assert isinstance(first, inference_pb2.GenerateRequest)
    assert server.wait_until_left(first.request_id)
    terminal.type(b"again\n")
    terminal.wait_for(b"again\r\nagain")
    terminal.wait_for(b"> ")
    second = server.requests[1]
    assert isinstance(second, inference_pb2.GenerateRequest)
    assert [message.content for message in second.chat.messages] == ["hello", "partial", "again"]
    assert first.session == second.session
    terminal.type(b"\x04")
    assert process.wait(PATIENCE_S) == 0


def press_ctrl_c_at_the_prompt(process: subprocess.Popen[bytes], terminal: Terminal) -> None:
    process.send_signal(signal.SIGINT)
    # input() sees a signal that comes just before it waits for keys only with the next line.
    terminal.type(b"\n")


def test_two_ctrl_c_leave_the_talk(start: Start, terminal: Terminal) -> None:
    process = talk(start, terminal)
    terminal.wait_for(b"> ")
    press_ctrl_c_at_the_prompt(process, terminal)
    terminal.wait_for(b"again or Ctrl-D leaves")
    terminal.wait_for(b"> ")
    press_ctrl_c_at_the_prompt(process, terminal)
    assert process.wait(PATIENCE_S) == 130


def test_an_error_does_not_end_the_talk(
    start: Start, server: FakeInferenceServer, terminal: Terminal
) -> None:
    import grpc

    from tandemserve.testing import Fail

    server.failures.append(
        Fail(grpc.StatusCode.INVALID_ARGUMENT, "too long; say less", code="context_too_long")
    )
    process = talk(start, terminal)
    terminal.wait_for(b"> ")
    terminal.type(b"hello\n")
    terminal.wait_for(b"error [context_too_long]: too long; say less")
    terminal.type(b"again\n")
    terminal.wait_for(b"again\r\nagain")
    terminal.wait_for(b"> ")
    last = server.requests[-1]
    assert isinstance(last, inference_pb2.GenerateRequest)
    assert [message.content for message in last.chat.messages] == ["again"]
    terminal.type(b"\x04")
    assert process.wait(PATIENCE_S) == 0


# --- up and demo ------------------------------------------------------------------------------

LAUNCHER = """
import json, signal, sys
try:
    print(json.dumps(sys.argv[1:]), flush=True)
    if "--wait" in sys.argv:
        signal.pause()
except KeyboardInterrupt:
    sys.exit(5)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with a launcher that prints its arguments."""
    folder = tmp_path / "checkout"
    (folder / "deploy").mkdir(parents=True)
    (folder / "deploy" / "__init__.py").touch()
    (folder / "deploy" / "local.py").write_text(LAUNCHER)
    return folder


def test_up_hands_its_options_to_the_launcher(start: Start, checkout: Path) -> None:
    process = start("up", "--decode", "3", "--model", "my model", "--new-option", "7",
                    cwd=checkout, path=(checkout,))  # fmt: skip
    code, stdout, stderr = ended(process)
    assert (code, stderr) == (0, "")
    assert stdout == (
        '["up", "--model", "my model", "--decode", "3", '
        '"--host", "127.0.0.1", "--port", "7700", "--new-option", "7"]\n'
    )


def test_demo_passes_everything_on(start: Start, checkout: Path) -> None:
    process = start("demo", "--json", "--prompts", "2", cwd=checkout, path=(checkout,))
    assert ended(process)[1] == '["demo", "--json", "--prompts", "2"]\n'


def test_the_launcher_gets_the_signals_and_gives_the_exit_code(
    start: Start, checkout: Path
) -> None:
    process = start("up", "--wait", cwd=checkout, path=(checkout,))
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b'["up"')
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 5


def test_another_deploy_folder_is_not_mistaken_for_the_launcher(
    start: Start, checkout: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "deploy").mkdir(parents=True)
    (elsewhere / "deploy" / "__init__.py").touch()
    process = start("demo", cwd=elsewhere, path=(checkout,))
    assert ended(process)[1] == '["demo"]\n'


def test_without_a_launcher_one_line_says_where_servers_come_from(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "__init__.py").touch()
    code, stdout, stderr = ended(start("up", path=(tmp_path,)))
    assert (code, stdout, stderr.count("\n")) == (1, "", 1)
    assert "checkout or the container image" in stderr


# --- simulate and plan ------------------------------------------------------------------------


@pytest.fixture
def simulator(tmp_path: Path) -> Path:
    """A folder with a simulator that prints its arguments, as the launcher does."""
    folder = tmp_path / "checkout"
    (folder / "simulator").mkdir(parents=True)
    (folder / "simulator" / "__init__.py").touch()
    (folder / "simulator" / "core_cluster.py").touch()
    (folder / "simulator" / "__main__.py").write_text(LAUNCHER)
    return folder


def test_simulate_hands_its_options_to_the_simulator(start: Start, simulator: Path) -> None:
    process = start("simulate", "--trace", "my trace.csv", "--policy", "default,fcfs",
                    "--search-goodput", "--rate-scale=1,2", "--new-option", "7", "--seed", "-3",
                    path=(simulator,))  # fmt: skip
    code, stdout, stderr = ended(process)
    assert (code, stderr) == (0, "")
    assert stdout == (
        '["simulate", "--trace=my trace.csv", "--policy=default,fcfs", "--seed=-3", '
        '"--rate-scale=1,2", "--search-goodput", "--new-option", "7"]\n'
    )


def test_plan_hands_its_options_to_the_simulator(start: Start, simulator: Path) -> None:
    process = start("plan", "--trace", "t.csv", "--target-rps", "2.5", "--max-workers", "8",
                    "--json", "out.json", "--shape", "any", path=(simulator,))  # fmt: skip
    assert ended(process)[1] == (
        '["plan", "--trace=t.csv", "--json=out.json", "--target-rps=2.5", "--max-workers=8", '
        '"--shape", "any"]\n'
    )


def test_replay_hands_its_options_to_the_simulator(start: Start, simulator: Path) -> None:
    process = start("replay", "-odd.jsonl.gz", "--show", "7", "--check", path=(simulator,))
    assert ended(process)[0] == 2
    process = start("replay", "--show", "7", "--check", "--", "-odd.gz", path=(simulator,))
    assert ended(process)[1] == '["replay", "--show=7", "--check", "--", "-odd.gz"]\n'


def test_the_simulator_gets_the_signals_and_gives_the_exit_code(
    start: Start, simulator: Path
) -> None:
    process = start("simulate", "--trace", "t.csv", "--wait", path=(simulator,))
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b'["simulate"')
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 5


def test_without_a_simulator_one_line_says_where_it_comes_from(
    start: Start, tmp_path: Path
) -> None:
    # Some other package of that name.
    (tmp_path / "simulator").mkdir()
    (tmp_path / "simulator" / "__init__.py").touch()
    code, stdout, stderr = ended(start("plan", "--trace", "t.csv", path=(tmp_path,)))
    assert (code, stdout, stderr.count("\n")) == (1, "", 1)
    assert "checkout, not from the wheel" in stderr


def test_without_a_trace_a_sample_is_simulated_and_named(start: Start) -> None:
    code, stdout, stderr = ended(start("simulate", "--max-requests", "20"))
    assert (code, stdout.startswith("azure_2023_conv, ")) == (0, True), stderr
    assert stderr.startswith("note: no --trace: this is the first 1,000 requests of Azure")
    assert "CC BY 4.0" in stderr


def test_a_real_simulation_runs_from_the_command(start: Start, tmp_path: Path) -> None:
    trace = tmp_path / "two.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,5\n1,200,3\n")
    code, stdout, stderr = ended(start("simulate", "--trace", str(trace), "--hardware", "h200"))
    assert (code, stderr.count("\n")) == (0, 1)
    assert stderr.startswith("note: goals ")
    assert stdout.startswith("two, 2.00 req/s; mixed:1 on h200")
