"""Workers die and blocks are damaged under load: an error or the right token, nothing else."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deploy.local.child import ChildProcess
from deploy.local.cluster import LocalCluster
from tandemserve import AsyncClient, AsyncStream, Completion, Delta, KvCorrupted

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
ExtraWorker = Callable[..., AbstractAsyncContextManager[ChildProcess]]
Prompt = tuple[int, ...]
Greedy = Callable[[str, Sequence[Prompt], int], list[Prompt]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]
HasPushedTo = Callable[..., Awaitable[bool]]

PATIENCE_S = 120.0
NUM_OUTPUT = 48
MAX_ROUNDS = 10
LENGTHS = (1, 17, 33, 64, 100, 130)
_rng = random.Random(3)
PROMPTS = [tuple(_rng.choices(range(3, 320), k=n)) for n in LENGTHS for _ in range(8)]
_salts = count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    async with start_cluster(
        model_folders["llama"],
        num_prefill=2,
        # Few, so that prefill workers hold finished prompts while decode workers are full.
        decode={"num_blocks": "48"},
    ) as running:
        yield running


class Load:
    """Requests that run together; what they have streamed so far.

    They find nothing of earlier ones: all of their KV is computed and moved.
    """

    def __init__(self, client: AsyncClient, prompts: Sequence[Prompt]) -> None:
        self._options: dict[str, Any] = {"max_tokens": NUM_OUTPUT, "ignore_eos": True}
        self._options |= {"temperature": 0.0, "timeout_s": PATIENCE_S}
        self._options["cache_salt"] = f"load {next(_salts)}"
        self._received: list[list[int]] = [[] for _ in prompts]
        self._calls = [
            asyncio.create_task(self._follow(client, number, prompt))
            for number, prompt in enumerate(prompts)
        ]

    @property
    def num_tokens(self) -> int:
        return sum(len(tokens) for tokens in self._received)

    @property
    def is_over(self) -> bool:
        return all(call.done() for call in self._calls)

    async def finish(self) -> list[Completion]:
        answers = await asyncio.gather(*self._calls)
        # What came bit by bit is what the whole says.
        assert [tuple(tokens) for tokens in self._received] == [a.token_ids for a in answers]
        return answers

    async def _follow(self, client: AsyncClient, number: int, prompt: Prompt) -> Completion:
        async with client.stream(prompt, **self._options) as stream:
            async for event in stream:
                if isinstance(event, Delta):
                    assert event.first_token_index == len(self._received[number])
                    self._received[number] += event.token_ids
            return await stream.completion()


async def is_in_the_midst(client: AsyncClient, load: Load, victim: str) -> bool:
    """The victim is at work, and answers have begun; or it is too late for that."""
    workers = {view.worker_id: view for view in await client.admin.workers()}
    is_busy = workers[victim].num_free_blocks < workers[victim].num_blocks
    return load.is_over or (is_busy and load.num_tokens > 20)


@pytest.mark.parametrize(("victim", "peer"), [("decode-0", "decode-1"), ("prefill-0", "prefill-1")])
async def test_a_worker_killed_in_mid_load_costs_no_answer_and_no_token(
    cluster: LocalCluster,
    greedy: Greedy,
    assert_empty: AssertEmpty,
    until: Until,
    victim: str,
    peer: str,
) -> None:
    expected = greedy("llama", PROMPTS, NUM_OUTPUT)
    async with cluster.client() as client:
        num_migrations = 0
        # Once, but for a machine that holds this process up until all is over.
        for _ in range(MAX_ROUNDS):
            load = Load(client, PROMPTS)
            await until(lambda load=load: is_in_the_midst(client, load, victim))
            cluster.process(victim).kill()
            cluster.process(victim).start()
            answers = await load.finish()
            assert [answer.token_ids for answer in answers] == expected
            num_migrations += sum(answer.timings.num_migrations for answer in answers)
            await cluster.wait_ready(victim)
            if num_migrations:
                break
        assert num_migrations > 0
        await assert_empty(cluster)
        # The new life works as well.
        await client.admin.cordon(peer)
        answers = await Load(client, PROMPTS[::4]).finish()
        await client.admin.uncordon(peer)
    assert [answer.token_ids for answer in answers] == expected[::4]
    timings = [answer.timings for answer in answers]
    assert victim in {t.prefill_worker for t in timings} | {t.decode_worker for t in timings}
    await assert_empty(cluster)


async def assert_refused_as_damaged(
    cluster: LocalCluster, prompt: Prompt, expected: Prompt
) -> None:
    received: list[int] = []

    async def read(stream: AsyncStream) -> None:
        async for event in stream:
            assert isinstance(event, Delta)
            received.extend(event.token_ids)

    async with AsyncClient(cluster.endpoint, max_retries=0) as client:
        # What the decode worker had already would not be pushed, nor damaged.
        salt = f"damaged {next(_salts)}"
        stream = client.stream(
            prompt, max_tokens=NUM_OUTPUT, temperature=0.0, ignore_eos=True, cache_salt=salt
        )
        with pytest.raises(KvCorrupted, match=r"damaged again.*look at") as caught:
            await read(stream)
    assert caught.value.gpu_work_spent
    # One token of each prefill, which needs no transfer; none from damaged blocks.
    assert tuple(received) == expected[:2]


async def test_damaged_blocks_are_computed_again_once_and_never_become_a_token(
    cluster: LocalCluster,
    extra_worker: ExtraWorker,
    model_folders: dict[str, Path],
    greedy: Greedy,
    has_pushed_to: HasPushedTo,
    assert_empty: AssertEmpty,
    until: Until,
) -> None:
    expected = greedy("llama", PROMPTS, NUM_OUTPUT)
    for name in ("prefill-0", "prefill-1"):
        cluster.process(name).terminate()
        assert await cluster.process(name).wait_ended(PATIENCE_S)
    settings = {"kv_checksum_fraction": "1.0", "max_num_batched_tokens": "32", "num_blocks": "512"}
    async with (
        extra_worker(
            cluster, "prefill_worker.testing", model_folders["llama"], "prefill-0", **settings
        ) as damageable,
        cluster.client() as client,
    ):

        async def is_the_only_one() -> bool:
            views = [view for view in await cluster.workers() if view.role == "prefill"]
            return [view.state for view in views] == ["ready"]

        await until(is_the_only_one)
        await until(partial(has_pushed_to, client, "decode-0", "decode-1"))
        os.kill(damageable.pid, signal.SIGUSR1)
        answers = await Load(client, PROMPTS).finish()
        assert [answer.token_ids for answer in answers] == expected
        assert sum(answer.timings.num_migrations for answer in answers) > 0
        await assert_empty(cluster)

        os.kill(damageable.pid, signal.SIGUSR2)
        for number in range(0, len(PROMPTS), 6):
            await assert_refused_as_damaged(cluster, PROMPTS[number], expected[number])
        await assert_empty(cluster)
    for name in ("prefill-0", "prefill-1"):
        cluster.process(name).start()
    await cluster.wait_ready("prefill-0", "prefill-1")


async def test_a_worker_with_another_model_is_shown_as_incompatible_and_never_used(
    cluster: LocalCluster,
    extra_worker: ExtraWorker,
    model_folders: dict[str, Path],
    greedy: Greedy,
    assert_empty: AssertEmpty,
    until: Until,
) -> None:
    async with (
        extra_worker(cluster, "decode_worker", model_folders["qwen2"], "stranger"),
        cluster.client() as client,
    ):

        async def state(wanted: str) -> bool:
            views = await client.admin.workers()
            return any(v.worker_id == "stranger" and v.state == wanted for v in views)

        await until(lambda: state("incompatible"))
        view = {v.worker_id: v for v in await client.admin.workers()}["stranger"]
        assert "serves another model than the router; start both with the same" in view.problem
        answers = await Load(client, PROMPTS).finish()
    assert [answer.token_ids for answer in answers] == greedy("llama", PROMPTS, NUM_OUTPUT)
    assert "stranger" not in {answer.timings.decode_worker for answer in answers}

    async def is_gone() -> bool:
        return all(view.worker_id != "stranger" for view in await cluster.workers())

    await until(is_gone)
    await assert_empty(cluster)
