"""A cluster inside a test: started, disturbed on purpose, stopped."""

import shutil
import socket
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from deploy.local.cluster import LocalCluster
from deploy.local.errors import ProcessEnded
from deploy.local.settings import ClusterSettings
from runtime.errors import StartupError

pytestmark = pytest.mark.slow

FEW_BLOCKS = {"num_blocks": "64"}
PATIENCE_S = 120.0


@pytest.fixture
def settings(model_folder: Path, tmp_path: Path) -> ClusterSettings:
    return ClusterSettings(
        model=model_folder,
        num_decode=1,
        router={"auth_token": "geheim"},
        prefill_worker=FEW_BLOCKS,
        decode_worker=FEW_BLOCKS,
        log_dir=tmp_path,
        start_timeout_s=PATIENCE_S,
    )


async def test_a_killed_worker_can_be_started_again_and_serves(settings: ClusterSettings) -> None:
    said: list[str] = []
    async with LocalCluster(settings, said.append) as cluster, cluster.client() as client:
        assert [process.name for process in cluster.processes] == [
            *("router-0", "prefill-0", "decode-0")
        ]
        before = {view.worker_id: view.incarnation for view in await cluster.workers()}
        decode = cluster.process("decode-0")
        first_pid = decode.pid
        decode.kill()
        with pytest.raises(ProcessEnded, match="decode-0 was ended by SIGKILL"):
            await cluster.wait_ready("decode-0")
        decode.restart()
        await cluster.wait_ready("decode-0")
        after = {view.worker_id: view.incarnation for view in await cluster.workers()}
        assert after["prefill-0"] == before["prefill-0"]
        assert after["decode-0"] > before["decode-0"]
        assert decode.pid != first_pid
        answer = await client.generate("hello", max_tokens=4, ignore_eos=True)
        assert answer.usage.num_output_tokens == 4
        pids = [process.pid for process in cluster.processes]
        assert await cluster.stop() == ()
        assert await cluster.stop() == ()
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert said[0].startswith("redis ready")


async def test_a_cluster_that_cannot_start_leaves_no_process(
    settings: ClusterSettings, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(settings.model, own)
    # An address for documentation, which no machine has: only the worker finds out.
    elsewhere = {**FEW_BLOCKS, "kv_host": "192.0.2.1", "transports": "tcp"}
    cluster = LocalCluster(replace(settings, model=own, decode_worker=elsewhere))
    with pytest.raises(ProcessEnded) as failure:
        await cluster.start()
    assert "192.0.2.1" in failure.value.message
    assert await cluster.stop() == ()
    below = psutil.Process().children(recursive=True)
    assert [child for child in below if f"--model={own}" in child.cmdline()] == []


async def test_a_router_that_ends_while_workers_load_ends_the_start(
    settings: ClusterSettings,
) -> None:
    def kill_the_router(line: str) -> None:
        if line.startswith("1/3 processes ready"):
            cluster.process("router-0").kill()

    cluster = LocalCluster(settings, kill_the_router)
    with pytest.raises(ProcessEnded, match="router-0 was ended by SIGKILL"):
        await cluster.start()


async def test_a_context_that_the_model_does_not_have_is_told_before_anything_starts(
    settings: ClusterSettings,
) -> None:
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wanted = replace(
            settings, port=listener.getsockname()[1], router={"max_model_len": "100000"}
        )
        with pytest.raises(StartupError, match="is taken"):
            await LocalCluster(wanted, said.append).start()
    (warning,) = said
    assert warning.startswith("warning: --max-model-len asks for 100000 tokens, the model's")
