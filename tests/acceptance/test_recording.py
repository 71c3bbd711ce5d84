"""Real clusters whose router is recorded: the recording replays, also that of a killed router."""

import asyncio
import gzip
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from deploy.local.cluster import LocalCluster
from router.recording.entries import ENDED
from router.recording.file import Recording
from simulator.replaying import Replayed, replay
from tandemserve import AsyncClient, TandemError

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
Until = Callable[..., Awaitable[float]]
SEED = 23
# In no file and no log line.
STOP, SALT = "xyzzy-never-said", "salt-of-a-tenant"
LIMITS: dict[str, Any] = {"temperature": 0.0, "timeout_s": 120.0}


async def load(client: AsyncClient) -> None:
    """Everything a router decides on: prompts that share, several answers, ends of every kind."""
    print(f"prompts: seed {SEED}")
    rng = random.Random(SEED)
    common = tuple(rng.choices(range(3, 300), k=48))
    calls = []
    for number in range(30):
        prompt = (*common[: rng.choice((0, 48))], *rng.choices(range(3, 300), k=rng.randint(1, 90)))
        options: dict[str, Any] = {
            "max_tokens": rng.randint(1, 60),
            "ignore_eos": True,
            "n": rng.choice((1, 1, 3)),
            "stop": [STOP],
            "cache_salt": rng.choice((None, SALT)),
            "tenant": f"tenant-{number % 3}",
            "request_class": rng.choice(("interactive", "standard", "batch")),
        }
        calls.append(ask(client, prompt, number, options))
    await asyncio.gather(*calls)


async def ask(
    client: AsyncClient, prompt: tuple[int, ...], number: int, options: dict[str, Any]
) -> None:
    if number % 7 == 3:  # leaves in the midst
        async with client.stream(prompt, **(LIMITS | options)) as events:
            async for _ in events:
                break
        return
    if number % 7 == 5:  # is late
        options["timeout_s"] = 0.02
    try:
        await client.generate(prompt, **(LIMITS | options))
    except TandemError:
        assert number % 7 == 5


def replayed(path: Path) -> tuple[Recording, Replayed]:
    with path.open("rb") as file:
        recording = Recording(path, file)
        return recording, replay(recording, is_checking=True)


@pytest.mark.parametrize(
    ("policy", "workers"),
    [
        ("default", {"num_prefill": 1, "num_decode": 1}),
        ("default", {"num_prefill": 0, "num_decode": 0, "num_mixed": 2}),
        ("ecoserve", {"num_prefill": 1, "num_decode": 0, "num_mixed": 1}),
    ],
)
async def test_the_core_alone_decides_what_the_cluster_decided(
    policy: str,
    workers: dict[str, int],
    start_cluster: StartCluster,
    model_folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    async with (
        start_cluster(
            model_folders["qwen2"],
            **workers,
            router={"policy": policy, "record_dir": str(tmp_path / "records")},
            # Few blocks: answers grow, wait and make room.
            decode={"policy": policy, "num_blocks": "40"},
        ) as cluster,
        cluster.client() as client,
    ):
        await load(client)
    (path,) = (tmp_path / "records").iterdir()
    recording, found = replayed(path)
    assert found.difference is None, found.difference.line()
    assert recording.end_reason == ENDED
    # Those that came too late may never have reached the router.
    assert found.num_requests >= 25
    text = gzip.decompress(path.read_bytes()).decode()
    assert STOP not in text
    assert SALT not in text
    print(f"{found.num_events} events, {len(text)} bytes, {path.stat().st_size} packed")


async def test_the_recording_of_a_killed_router_replays_up_to_its_end(
    start_cluster: StartCluster, model_folders: dict[str, Path], tmp_path: Path, until: Until
) -> None:
    records = tmp_path / "records"
    async with start_cluster(
        model_folders["qwen2"], num_decode=1, router={"record_dir": str(records)}
    ) as cluster:
        async with cluster.client() as client:
            await load(client)

        async def has_requests() -> bool:
            (path,) = records.iterdir()
            return replayed(path)[1].num_requests >= 25

        # What is a second old is in the file.
        await until(has_requests)
        router = cluster.process("router-0")
        router.kill()
        assert await router.wait_ended(60.0)
        (path,) = records.iterdir()
        recording, found = replayed(path)
        assert found.difference is None, found.difference.line()
        assert recording.end_reason is None
        assert found.num_requests >= 25
        # A new life has a file of its own.
        router.start()
        await cluster.wait_ready("router-0")
    assert len(list(records.iterdir())) == 2
