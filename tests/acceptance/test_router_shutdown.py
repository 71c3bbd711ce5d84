"""A router that must end before its answers do tells their callers so."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from deploy.local.cluster import LocalCluster
from deploy.local.testing import Saboteur, extra_router
from tandemserve import AsyncClient, NoWorkerAvailable, TandemError

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
Until = Callable[..., Awaitable[float]]

PATIENCE_S = 120.0
MAX_TRIES = 10


async def test_an_answer_that_a_drain_cannot_wait_for_ends_with_the_reason(
    start_cluster: StartCluster, model_folders: dict[str, Path], until: Until
) -> None:
    model = model_folders["llama"]
    async with (
        start_cluster(model, num_decode=1) as cluster,
        extra_router(cluster, model, "router-1", drain_timeout_s="0.5") as leaving,
        AsyncClient(leaving.endpoint, max_retries=0, timeout_s=PATIENCE_S) as client,
    ):

        async def serves() -> bool:
            try:
                return len((await client.generate([5], max_tokens=1)).token_ids) == 1
            except TandemError:
                return False

        await until(serves)
        saboteur = Saboteur(cluster)
        try:
            # Once, but for a machine that holds this process up until the answer is over.
            for _ in range(MAX_TRIES):
                stream = client.stream([5, 6, 7], max_tokens=250, ignore_eos=True)
                await anext(stream)
                saboteur.freeze("decode-0")  # so that the answer outlasts the drain
                if (await client.admin.requests()).num_running:
                    break
                saboteur.thaw_all()
                await stream.completion()
            else:
                raise AssertionError("every answer was over before it could be held")
            leaving.child.terminate()
            with pytest.raises(NoWorkerAvailable, match="this router is shutting down") as ended:
                await stream.completion()
        finally:
            saboteur.thaw_all()
        assert ended.value.retryable
        assert ended.value.gpu_work_spent
        assert await leaving.child.wait_ended(PATIENCE_S)
        assert leaving.child.ended_well
