"""Workers are killed while KV is parked on prefill workers because no decode worker has room.

What is full stays full: the decode workers are stopped while they hold blocks for an answer each.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.local.cluster import LocalCluster
from deploy.local.testing import Saboteur, answer_without_gaps
from tandemserve import AsyncClient, Completion, Holding

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]

PREFILL, DECODE = ("prefill-0", "prefill-1"), ("decode-0", "decode-1")
# Prompt and answer are 180 tokens, 12 blocks of 16: all that one decode worker has. A prompt alone
# is half of it, so a second answer never fits, whatever is predicted of the first.
NUM_DECODE_BLOCKS = "12"
NUM_OUTPUT = 90
PROMPTS = [[5 + (i * step) % 300 for i in range(90)] for step in (1, 7, 11, 13)]
FILLERS, PARKED = PROMPTS[:2], PROMPTS[2:]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    async with start_cluster(
        model_folders["llama"],
        num_prefill=2,
        # Stopped workers are to count as slow, not as dead.
        router={"heartbeat_timeout_s": "60"},
        decode={"num_blocks": NUM_DECODE_BLOCKS},
    ) as running:
        yield running


@dataclass
class Case:
    """Both decode workers full and stopped, two more answers with their KV parked."""

    client: AsyncClient
    saboteur: Saboteur
    until: Until
    asking: list[asyncio.Task[Completion]] = field(default_factory=list)

    async def ask(self, prompt: list[int]) -> Completion:
        return await answer_without_gaps(self.client, prompt, NUM_OUTPUT)

    async def until_num(self, phase: str, number: int) -> None:
        async def is_so() -> bool:
            return bool(getattr(await self.client.admin.status(), f"num_{phase}") == number)

        await self.until(is_so)

    async def until_decode_is_full(self) -> None:
        async def is_full() -> bool:
            views = await self.client.admin.workers()
            return all(v.num_free_blocks < v.num_blocks // 2 for v in views if v.role == "decode")

        await self.until(is_full)

    async def holdings(self, leg: str) -> list[Holding]:
        held = (await self.client.admin.reservations()).holdings
        return [holding for holding in held if holding.leg == leg]

    async def park(self) -> None:
        self.saboteur.freeze(*PREFILL)
        self.asking += [asyncio.create_task(self.ask(prompt)) for prompt in FILLERS]
        await self.until_decode_is_full()
        self.saboteur.freeze(*DECODE)
        self.saboteur.thaw(*PREFILL)
        await self.until_num("transferring", len(FILLERS))
        self.asking += [asyncio.create_task(self.ask(prompt)) for prompt in PARKED]
        await self.until_num("generation_queued", len(PARKED))

        async def is_parked() -> bool:
            return len(await self.holdings("prefill")) == len(PARKED)

        await self.until(is_parked)
        assert sorted(h.worker_id for h in await self.holdings("decode")) == list(DECODE)

    async def answers(self) -> list[Completion]:
        self.saboteur.thaw_all()
        return list(await asyncio.gather(*self.asking))


@pytest.mark.parametrize("leg", ["prefill", "decode"])
async def test_answers_survive_a_kill_while_kv_is_parked(
    cluster: LocalCluster, assert_empty: AssertEmpty, until: Until, leg: str
) -> None:
    async with cluster.client() as client:
        case = Case(client, Saboteur(cluster), until)
        try:
            expected = [await case.ask(prompt) for prompt in PROMPTS]
            await assert_empty(cluster)
            await case.park()
            lost = (await case.holdings(leg))[0].worker_id
            num_lost = sum(h.worker_id == lost for h in await case.holdings(leg))
            case.saboteur.kill(lost)
            if leg == "decode":
                # Whoever was there is computed again, and parked like the others.
                await case.until_num("generation_queued", len(PARKED) + num_lost)
            answers = await case.answers()
        finally:
            case.saboteur.thaw_all()
        for answer, right in zip(answers, expected, strict=True):
            assert answer.choices[0].token_ids == right.choices[0].token_ids
            assert answer.choices[0].logprobs == right.choices[0].logprobs
            assert answer.text == right.text
        num_again = sum(answer.choices[0].timings.num_migrations for answer in answers)
        assert num_again == num_lost >= 1, "only what lay on the killed worker is computed again"
        case.saboteur.start(lost)
        await cluster.wait_ready(lost)
        await assert_empty(cluster)
        again = await case.ask(PROMPTS[0])
        assert again.choices[0].token_ids == expected[0].choices[0].token_ids
    await assert_empty(cluster)
