"""What cannot start says so in one line, leaves with a code, and leaves nothing behind."""

import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.local.testing import LauncherProcess

Launch = Callable[..., LauncherProcess]
Arguments = tuple[str, ...]

pytestmark = pytest.mark.slow


def error_of(launched: LauncherProcess, code: int = 1) -> str:
    """The one error line of a launcher that failed with this code."""
    found, out, err = launched.end()
    assert (found, out) == (code, ""), err
    assert "Traceback" not in err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, err
    assert err.splitlines()[-1] == errors[0]
    return errors[0]


def test_a_taken_port(launch: Launch, small_cluster: Arguments) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        error = error_of(launch("up", *small_cluster, "--port", str(port)))
    assert (
        error
        == f"error: port {port} is taken; stop what listens on it, or choose another with --port"
    )


def test_a_model_folder_without_weights(
    launch: Launch, small_cluster: Arguments, model_folder: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    (broken / "model.safetensors").unlink()
    error = error_of(launch("up", *small_cluster, "--model", str(broken)), code=2)
    assert str(broken) in error
    assert "safetensors" in error


def test_a_redis_that_is_not_there(launch: Launch, small_cluster: Arguments) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"redis://:geheim@127.0.0.1:{port}"
    error = error_of(launch("up", *small_cluster, "--redis", url))
    assert f"unreachable Redis at 127.0.0.1:{port}" in error
    assert "geheim" not in error


def test_a_setting_that_does_not_exist(launch: Launch, small_cluster: Arguments) -> None:
    error = error_of(launch("up", *small_cluster, "--router.polcy=fcfs"), code=2)
    assert "did you mean --policy?" in error


def test_what_workers_would_refuse_is_refused_before_anything_is_started(
    launch: Launch, small_cluster: Arguments, tmp_path: Path
) -> None:
    launched = launch("up", *small_cluster, "--decode-worker.transports=pigeon")
    error = error_of(launched, code=2)
    assert error.startswith("error: decode workers: transport 'pigeon' is unknown")
    assert launched.end()[2].splitlines() == [error]
    assert list(tmp_path.glob("logs/*")) == []


def test_a_setting_that_only_the_worker_can_judge_names_the_worker_and_its_log(
    launch: Launch, small_cluster: Arguments, tmp_path: Path
) -> None:
    # An address for documentation, which no machine has.
    elsewhere = ("--decode-worker.kv-host=192.0.2.1", "--decode-worker.transports=tcp")
    launched = launch("up", *small_cluster, *elsewhere)
    launched.wait_said("loading model")
    launched.note_children()
    error = error_of(launched)
    assert "decode-0 ended with status 1" in error
    assert "192.0.2.1" in error
    assert str(tmp_path / "logs" / "decode-0.log") in error
    assert launched.survivors() == []


def test_workers_whose_blocks_differ_are_incompatible(
    launch: Launch, small_cluster: Arguments
) -> None:
    arguments = ("--block-size", "8", "--decode-worker.block-size=16")
    error = error_of(launch("up", *small_cluster, *arguments, "--start-timeout-s", "120"))
    assert "incompatible" in error
    assert "-0.log" in error


def test_a_start_that_takes_too_long_says_who_is_missing(
    launch: Launch, small_cluster: Arguments
) -> None:
    error = error_of(launch("up", *small_cluster, "--start-timeout-s", "0.05"))
    assert "not ready after 0.05 s" in error
    assert "decode-0" in error
    assert "--start-timeout-s" in error
