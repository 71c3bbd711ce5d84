"""Signals, exit codes and what is left behind, on real processes."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 120.0
PREAMBLE = """
import asyncio, sys, threading
from runtime.config import RouterConfig
from runtime.errors import StartupError
from runtime.process import run_process, run_until_stopped

def run(main):
    sys.exit(run_process(RouterConfig, main, ["--model", "m", *sys.argv[1:]]))
"""


@contextmanager
def program(body: str, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """Run a main written for this test; `ready` on stdout says that it serves."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("TANDEM_")}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PREAMBLE + textwrap.dedent(body), *argv],
        cwd=ROOT,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=TIMEOUT_S)


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def outcome(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, out, err


SERVES = """
async def main(config, stop):
    print("ready", flush=True)
    await stop.wait()
    print("drained", flush=True)

run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_drains_and_exits_with_0(number: signal.Signals) -> None:
    with program(SERVES) as process:
        wait_until_ready(process)
        process.send_signal(number)
        code, out, err = outcome(process)
    assert (code, out) == (0, "drained\n")
    assert "Traceback" not in err
    assert err.count("drain_started") == 1


def test_a_second_signal_ends_the_process_at_once() -> None:
    body = """
    async def main(config, stop):
        print("ready", flush=True)
        await stop.wait()
        print("draining", flush=True)
        await asyncio.Event().wait()

    run(main)
    """
    with program(body) as process:
        wait_until_ready(process)
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline() == "draining\n"
        process.send_signal(signal.SIGINT)
        code, _, err = outcome(process)
    assert code == 130
    assert "Traceback" not in err


def test_a_second_sigterm_lets_the_drain_go_on() -> None:
    body = """
    async def main(config, stop):
        print("ready", flush=True)
        await stop.wait()
        print("draining", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        print("drained", flush=True)

    run(main)
    """
    with program(body) as process:
        wait_until_ready(process)
        assert process.stdout is not None
        assert process.stdin is not None
        process.send_signal(signal.SIGTERM)
        assert process.stdout.readline() == "draining\n"
        process.send_signal(signal.SIGTERM)
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "drained\n"
        code, _, _ = outcome(process)
    assert code == 0


@pytest.mark.parametrize(
    "failure",
    [
        'raise StartupError("port 7700 is taken;\\nset another")',
        'raise ExceptionGroup("tasks", [StartupError("port 7700 is taken; set another")])',
    ],
)
def test_a_start_up_error_is_one_line_and_exit_code_1(failure: str) -> None:
    body = f"""
    async def main(config, stop):
        {failure}

    run(main)
    """
    with program(body, "--log-level", "error") as process:
        assert outcome(process) == (1, "", "router: port 7700 is taken; set another\n")


def test_wrong_settings_are_one_line_and_exit_code_2() -> None:
    with program(SERVES, "--prot", "1") as process:
        line = "router: unknown flag --prot; did you mean --port?\n"
        assert outcome(process) == (2, "", line)


def test_help_is_on_stdout_and_exit_code_0() -> None:
    with program(SERVES, "--help") as process:
        code, out, err = outcome(process)
    assert (code, err) == (0, "")
    assert "--max-prompt-queue" in out


def test_an_unforeseen_error_is_logged_and_exit_code_1() -> None:
    body = """
    async def main(config, stop):
        raise RuntimeError("unforeseen")

    run(main)
    """
    with program(body) as process:
        code, _, err = outcome(process)
    assert code == 1
    assert "process_failed" in err
    assert "RuntimeError: unforeseen" in err


def test_the_settings_are_logged_at_the_start_without_secrets() -> None:
    secrets = ["--auth-token", "hunter2", "--redis-url", "redis://:hunter2@h"]
    with program(SERVES, "--log-format", "json", *secrets) as process:
        wait_until_ready(process)
        process.terminate()
        _, _, err = outcome(process)
    assert '"event": "process_starting"' in err
    assert '"router_id": "router-0"' in err
    assert "hunter2" not in err


def test_tasks_left_behind_are_cancelled_and_awaited() -> None:
    body = """
    async def forgotten():
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            print("cleaned up", flush=True)

    async def main(config, stop):
        task = asyncio.create_task(forgotten())
        await asyncio.sleep(0)

    run(main)
    """
    with program(body) as process:
        code, out, err = outcome(process)
    assert (code, out) == (0, "cleaned up\n")
    assert "never" not in err


def test_a_task_that_refuses_to_end_is_named_and_does_not_hold_the_process() -> None:
    body = """
    async def stubborn():
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                pass

    async def main(stop):
        task = asyncio.create_task(stubborn(), name="stubborn-task")
        await asyncio.sleep(0)

    code = run_until_stopped(main, name="test", cleanup_timeout_s=0.1)
    print("code", code, flush=True)
    import os
    os._exit(0)
    """
    with program(body) as process:
        _, out, err = outcome(process)
    assert "code 0" in out
    assert "tasks_still_running" in out + err
    assert "stubborn-task" in out + err


def test_a_thread_that_hangs_does_not_hold_the_process() -> None:
    body = """
    async def main(config, stop):
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, threading.Event().wait)

    sys.exit(run_process(RouterConfig, main, ["--model", "m"], cleanup_timeout_s=0.2))
    """
    with program(body) as process:
        code, _, _ = outcome(process)
    assert code == 0


GRPC_SERVES = """
from runtime.grpc_server import ServerOptions, build_server

async def main(config, stop):
    bound = build_server(ServerOptions("127.0.0.1", config.port), ["test.Echo"])
    await bound.start()
    print(bound.port, flush=True)
    await stop.wait()
    await bound.stop(grace_s=1)

run(main)
"""


def test_a_process_with_a_server_stops_without_a_warning_while_it_is_watched() -> None:
    with program(GRPC_SERVES, "--port", "0", "--log-level", "warning") as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest(service="test.Echo"))
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            process.terminate()
            assert list(watch) == []
        assert outcome(process) == (0, "", "")


def test_a_taken_port_is_one_line_and_exit_code_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with program(GRPC_SERVES, "--port", str(port), "--log-level", "error") as process:
            line = f"router: port {port} is taken; stop what listens on it, or set another port\n"
            assert outcome(process) == (1, "", line)
