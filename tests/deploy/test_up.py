"""`up` as a user meets it: ready, used, disturbed, stopped. Real processes."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.local.testing import LauncherProcess, kv_pools_of
from tandemserve import Client

Launch = Callable[..., LauncherProcess]
Arguments = tuple[str, ...]

pytestmark = pytest.mark.slow


def without_log_dir(arguments: Arguments) -> Arguments:
    """Logs go to the temporary folder then."""
    at = arguments.index("--log-dir")
    return arguments[:at] + arguments[at + 2 :]


def num_tokens_from(endpoint: str) -> int:
    with Client(endpoint, timeout_s=60.0) as client:
        answer = client.generate("hello", max_tokens=6, ignore_eos=True)
        return answer.usage.num_output_tokens


def test_up_answers_and_ctrl_c_leaves_nothing_behind(
    launch: Launch, small_cluster: Arguments
) -> None:
    up = launch("up", *small_cluster, "--json")
    ready = up.ready()
    assert list(ready["pids"]) == ["router-0", "prefill-0", "decode-0"]
    assert ready["model"] == "tiny"
    # Redis is a child as well.
    assert len(up.children) == 4
    assert num_tokens_from(ready["endpoint"]) == 6
    pools = kv_pools_of(ready["endpoint"])
    assert len(pools) == 1
    up.send_signal(signal.SIGINT)
    code, out, err = up.end()
    assert (code, out) == (0, ""), err
    assert "Traceback" not in err
    assert up.survivors() == []
    assert not any(pool.exists() for pool in pools)
    logs = sorted(path.name for path in Path(ready["log_dir"]).iterdir())
    assert logs == ["decode-0.log", "prefill-0.log", "router-0.log"]


def test_a_worker_that_is_killed_is_reported_and_comes_back(
    launch: Launch, small_cluster: Arguments
) -> None:
    up = launch("up", *small_cluster, "--json")
    ready = up.ready()
    pools = kv_pools_of(ready["endpoint"])
    os.kill(ready["pids"]["decode-0"], signal.SIGKILL)
    report = up.wait_said("decode-0 was ended by SIGKILL")
    assert "starting it again in" in report
    up.wait_said("decode-0 is back")
    assert num_tokens_from(ready["endpoint"]) == 6
    pools += kv_pools_of(ready["endpoint"])
    assert len(pools) == 2
    up.note_children()
    up.send_signal(signal.SIGTERM)
    code, _, err = up.end()
    assert code == 0, err
    assert up.survivors() == []
    assert not any(pool.exists() for pool in pools)


def test_a_router_and_a_redis_that_are_killed_come_back_at_the_same_address(
    launch: Launch, small_cluster: Arguments
) -> None:
    up = launch("up", *small_cluster, "--json")
    ready = up.ready()
    [redis] = [child for child in up.children if child.pid not in ready["pids"].values()]
    redis.kill()
    up.wait_said("redis is back")
    assert num_tokens_from(ready["endpoint"]) == 6
    os.kill(ready["pids"]["router-0"], signal.SIGKILL)
    up.wait_said("router-0 is back")
    assert num_tokens_from(ready["endpoint"]) == 6
    up.note_children()
    up.send_signal(signal.SIGINT)
    code, _, err = up.end()
    assert code == 0, err
    assert up.survivors() == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no death signal")
def test_one_line_says_what_to_type_next_and_all_goes_with_a_launcher_that_is_killed(
    launch: Launch, small_cluster: Arguments
) -> None:
    up = launch("up", *small_cluster)
    line = up.ready_line()
    ready, _, command = line.partition(" - try: ")
    endpoint = ready.removeprefix("tandem ready on ").partition(" ")[0]
    assert ready == f"tandem ready on {endpoint} (1 prefill, 1 decode, model tiny)"
    assert command == f'tandem generate --target {endpoint} "The function returns"\n'
    pools = kv_pools_of(endpoint)
    up.send_signal(signal.SIGKILL)
    assert len(up.children) == 4
    assert up.survivors() == []
    assert not any(pool.exists() for pool in pools)


def test_a_second_ctrl_c_does_not_wait(launch: Launch, small_cluster: Arguments) -> None:
    up = launch("up", *without_log_dir(small_cluster), "--json")
    ready = up.ready()
    pools = kv_pools_of(ready["endpoint"])
    assert Path(ready["log_dir"], "router-0.log").exists()
    # A router that does not react holds the orderly end up.
    os.kill(ready["pids"]["router-0"], signal.SIGSTOP)
    up.send_signal(signal.SIGINT)
    up.wait_said("press Ctrl-C again")
    up.send_signal(signal.SIGINT)
    code, _, err = up.end()
    assert code == 130
    assert "Traceback" not in err
    assert up.survivors() == []
    assert not any(pool.exists() for pool in pools)
    assert not Path(ready["log_dir"]).exists()


def test_a_supervisor_that_asks_twice_still_gets_an_orderly_end(
    launch: Launch, small_cluster: Arguments
) -> None:
    up = launch("up", *small_cluster, "--json")
    up.ready()
    up.send_signal(signal.SIGTERM)
    assert "running answers have 10 s to end" in up.wait_said("press Ctrl-C again")
    up.send_signal(signal.SIGTERM)
    code, _, err = up.end()
    assert (code, "killed" in err) == (0, False), err
    assert up.survivors() == []


def test_ctrl_c_while_the_model_loads_says_so_and_ends_in_order(
    launch: Launch, small_cluster: Arguments
) -> None:
    up = launch("up", *without_log_dir(small_cluster))
    folder = Path(up.wait_said("loading model").rpartition("logs in ")[2].strip())
    up.note_children()
    assert folder.is_dir()
    up.send_signal(signal.SIGINT)
    code, out, err = up.end()
    assert (code, out) == (130, "")
    assert "Traceback" not in err
    *_, told, ended = err.splitlines()
    assert told.startswith("tandem: interrupted; ending all processes")
    assert ended == "tandem: stopped before it was ready; all processes have ended"
    assert up.survivors() == []
    assert not folder.exists()
