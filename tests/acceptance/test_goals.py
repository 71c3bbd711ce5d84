"""What callers wish of their answers reaches a worker's batches: SDK, router, a real process."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.local.cluster import LocalCluster
from deploy.local.testing import Saboteur
from tandemserve import AsyncClient, AsyncStream, Delta, PromptLogprobs, UnknownName

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]
EndedInOrder = Callable[[AsyncClient], Awaitable[list[str]]]

# What an iteration may hold, and what prompts get of one that is too long for somebody anyway.
MOST_TOKENS, FEWEST_TOKENS = 512, 16
# No iteration is as short, and none as long.
HURRIED_MS, AT_LEISURE_MS = 0.01, 600_000.0
# Of the answer beside them; far more than there are pieces of prompts.
NUM_TOKENS = 1800
# One is enough, but for a machine that holds this process up while that answer goes on.
MAX_ROUNDS = 20
_numbers = count()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    # Iterations as long as the goals of those that run allow, prompts in order of what is due.
    policy = {"policy": "accelgen"}
    async with start_cluster(
        model_folders["bundled"],
        num_prefill=0,
        num_decode=0,
        num_mixed=1,
        router=policy,
        decode=policy | {"max_num_batched_tokens": str(MOST_TOKENS), "num_blocks": "512"},
    ) as running:
        yield running


def prompt_of(num_tokens: int, step: int) -> list[int]:
    return [5 + (i * step) % 300 for i in range(num_tokens)]


class Case:
    """A worker with an answer that runs all the time, and prompts that come to it together."""

    def __init__(self, cluster: LocalCluster, client: AsyncClient, until: Until) -> None:
        self._client = client
        self._until = until
        self._saboteur = Saboteur(cluster)
        self._calls: list[asyncio.Task[None]] = []
        # Of the prompts in pieces: tokens of each.
        self.sizes: list[int] = []

    @asynccontextmanager
    async def beside_an_answer(self, **goals: float) -> AsyncIterator[None]:
        """What is asked for in here comes to the worker at once, at the end of it."""
        try:
            async with await self._stopped_in_mid_answer(goals):
                yield
                self._saboteur.thaw_all()
                await asyncio.gather(*self._calls)
        finally:
            self._saboteur.thaw_all()

    async def _stopped_in_mid_answer(self, goals: dict[str, float]) -> AsyncStream:
        """An answer that has most of its tokens before it; its worker stands still."""
        options = {"max_tokens": NUM_TOKENS, "ignore_eos": True, **goals}
        for _ in range(MAX_ROUNDS):
            name = f"beside-{next(_numbers)}"
            stream = self._client.stream(prompt_of(8, 3), request_id=name, **options)  # type: ignore[arg-type]
            assert isinstance(await anext(stream), Delta)
            self._saboteur.freeze("mixed-0")
            view = (await self._client.admin.request(name)).request
            if view.answers[0].num_output_tokens < NUM_TOKENS // 2:
                return stream
            self._saboteur.thaw_all()
            await stream.completion()
        raise AssertionError("the answer was never seen under way")

    async def ask(self, name: str, num_tokens: int, step: int, **goals: float) -> None:
        """Returns when the worker has been told."""
        call = self._compute(name, prompt_of(num_tokens, step), goals)
        self._calls.append(asyncio.create_task(call))

        async def is_told() -> bool:
            try:
                history = await self._client.admin.request(name)
            except UnknownName:
                return False
            return history.request.answers[0].phase == "prefilling"

        await self._until(is_told)

    async def _compute(self, name: str, prompt: list[int], goals: dict[str, float]) -> None:
        options = {"max_tokens": 1, "prompt_logprobs": 0, "request_id": name, **goals}
        async with self._client.stream(prompt, **options) as stream:  # type: ignore[arg-type]
            async for event in stream:
                if isinstance(event, PromptLogprobs):
                    self.sizes.append(len(event.logprobs))


# Whoever minds each gap minds the mean as well.
@pytest.mark.parametrize("goal", ["tbt_ms", "tpot_ms"])
async def test_beside_an_answer_with_a_goal_for_gaps_prompts_are_computed_in_small_pieces(
    cluster: LocalCluster, assert_empty: AssertEmpty, until: Until, goal: str
) -> None:
    async with cluster.client() as client:
        hurried, at_leisure = Case(cluster, client, until), Case(cluster, client, until)
        async with hurried.beside_an_answer(**{goal: HURRIED_MS}):
            await hurried.ask(f"hurried-{goal}", 160, 7)
        async with at_leisure.beside_an_answer(tpot_ms=AT_LEISURE_MS):
            await at_leisure.ask(f"at-leisure-{goal}", 160, 11)
    print(hurried.sizes, at_leisure.sizes)
    # The first token of a prompt has no logprob.
    assert sum(hurried.sizes) == sum(at_leisure.sizes) == 160 - 1
    assert len(hurried.sizes) == 160 / FEWEST_TOKENS
    assert len(at_leisure.sizes) < len(hurried.sizes) / 2
    await assert_empty(cluster)


@pytest.mark.parametrize("due_first", ["early", "late"])
async def test_of_prompts_that_wait_on_a_worker_the_one_whose_answer_is_due_first_goes_first(
    cluster: LocalCluster,
    assert_empty: AssertEmpty,
    until: Until,
    ended_in_order: EndedInOrder,
    due_first: str,
) -> None:
    async with cluster.client() as client:
        case = Case(cluster, client, until)
        # While the first is computed, in dozens of pieces, the others come and wait.
        async with case.beside_an_answer(tbt_ms=HURRIED_MS):
            await case.ask(f"at-work-{due_first}", 400, 7)
            for name, step in (("early", 11), ("late", 13)):
                jct_ms = 60_000.0 if name == due_first else 600_000.0
                await case.ask(f"{name}-{due_first}", 280, step, jct_ms=jct_ms)
        # Each has one token, and ends with it.
        ended = await ended_in_order(client)
    due_last = "late" if due_first == "early" else "early"
    computed = [name for name in ended if name.endswith(f"-{due_first}")]
    order = [name.partition(f"-{due_first}")[0] for name in computed]
    assert order == ["at-work", due_first, due_last]
    await assert_empty(cluster)
