"""Redis is killed under load and comes back empty: nobody waits for it, and its books are right."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.local.cluster import LocalCluster
from deploy.local.leak_check import check_for_leaks
from deploy.local.testing import REDIS, Saboteur, extra_router
from tandemserve import AsyncClient, Completion, TandemError

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
Prompt = tuple[int, ...]
Greedy = Callable[[str, Sequence[Prompt], int], list[Prompt]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]

NUM_OUTPUT = 32
# Far above what the load takes, far below the callers' deadlines.
NO_WAIT_S = 80.0
DEADLINE_S = 200.0
_rng = random.Random(17)
PROMPTS = [tuple(_rng.choices(range(3, 320), k=n)) for n in (1, 17, 40, 90) for _ in range(6)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    async with start_cluster(
        model_folders["llama"],
        router={"lease_ttl_s": "4"},
        # So few that the routers take each other's room, on either side.
        prefill={"num_blocks": "20", "lease_ttl_s": "30"},
        decode={"num_blocks": "24", "lease_ttl_s": "30"},
    ) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clients(
    cluster: LocalCluster, model_folders: dict[str, Path], until: Until
) -> AsyncIterator[list[AsyncClient]]:
    """One for each of two routers."""
    settings = {"lease_ttl_s": "4"}
    async with (
        extra_router(cluster, model_folders["llama"], "router-1", **settings) as other,
        cluster.client() as first,
        AsyncClient(other.endpoint) as second,
    ):

        async def serves() -> bool:
            views = await second.admin.workers()
            return len(views) == 3 and all(view.state == "ready" for view in views)

        await until(serves)
        yield [first, second]


async def ask(client: AsyncClient, prompt: Prompt) -> Completion:
    return await client.generate(
        prompt, max_tokens=NUM_OUTPUT, temperature=0.0, ignore_eos=True, timeout_s=DEADLINE_S
    )


@asynccontextmanager
async def load(clients: Sequence[AsyncClient]) -> AsyncIterator[list[asyncio.Task[Completion]]]:
    calls = [asyncio.create_task(ask(client, prompt)) for client in clients for prompt in PROMPTS]
    try:
        yield calls
    finally:
        for call in calls:
            call.cancel()


@asynccontextmanager
async def load_until(
    enough: asyncio.Event, clients: Sequence[AsyncClient]
) -> AsyncIterator[list[asyncio.Task[Prompt]]]:
    """Every prompt again and again, until it is enough; each task returns its last answer."""

    async def ask_again(client: AsyncClient, prompt: Prompt) -> Prompt:
        while True:
            answer = await ask(client, prompt)
            if enough.is_set():
                return answer.token_ids

    calls = [asyncio.create_task(ask_again(each, prompt)) for each in clients for prompt in PROMPTS]
    try:
        yield calls
    finally:
        for call in calls:
            call.cancel()


async def answers_of(calls: Sequence[asyncio.Task[Completion]]) -> list[Prompt]:
    async with asyncio.timeout(NO_WAIT_S):
        return [answer.token_ids for answer in await asyncio.gather(*calls)]


async def until_ledger_is(clients: Sequence[AsyncClient], there: bool, until: Until) -> None:
    async def all_say_so() -> bool:
        told = [(await client.admin.status()).ledger_available for client in clients]
        return told == [there] * len(clients)

    await until(all_say_so)


async def test_two_routers_serve_on_without_redis_and_fill_it_when_it_returns(
    cluster: LocalCluster,
    clients: list[AsyncClient],
    greedy: Greedy,
    assert_empty: AssertEmpty,
    until: Until,
) -> None:
    expected = greedy("llama", PROMPTS, NUM_OUTPUT) * 2
    saboteur = Saboteur(cluster)
    async with load(clients) as running:

        async def some_are_done() -> bool:
            return sum(call.done() for call in running) >= 3

        await until(some_are_done)
        saboteur.kill(REDIS)
        assert await answers_of(running) == expected
    await until_ledger_is(clients, False, until)
    # New ones are admitted against the workers' own capacity, by both routers at once.
    async with load(clients) as begun_without_it:
        assert await answers_of(begun_without_it) == expected
    async with load(clients) as begun_before_it_returns:
        await saboteur.revive_redis()
        await until_ledger_is(clients, True, until)
        assert await answers_of(begun_before_it_returns) == expected
    await assert_empty(cluster)
    for client in clients:
        leaks = await check_for_leaks(client, NO_WAIT_S)
        assert leaks.is_clean, leaks.line()
        assert (await client.admin.status()).num_failed == 0


async def test_redis_that_is_back_at_once_has_its_books_again(
    cluster: LocalCluster,
    clients: list[AsyncClient],
    greedy: Greedy,
    assert_empty: AssertEmpty,
    until: Until,
) -> None:
    expected = greedy("llama", PROMPTS, NUM_OUTPUT) * 2
    saboteur = Saboteur(cluster)

    async def both_routers_are_booked() -> bool:
        try:
            books = await clients[0].admin.reservations()
        except TandemError:  # it has just been killed
            return False
        return {holding.router_id for holding in books.holdings} == {"router-0", "router-1"}

    booked_again = asyncio.Event()
    async with load_until(booked_again, clients) as running:
        await until(both_routers_are_booked)
        saboteur.kill(REDIS)
        await saboteur.revive_redis()
        await until(both_routers_are_booked)
        booked_again.set()
        async with asyncio.timeout(NO_WAIT_S):
            assert await asyncio.gather(*running) == expected
    await until_ledger_is(clients, True, until)
    await assert_empty(cluster)


async def test_redis_that_hangs_is_treated_like_one_that_is_gone(
    cluster: LocalCluster,
    clients: list[AsyncClient],
    greedy: Greedy,
    assert_empty: AssertEmpty,
    until: Until,
) -> None:
    expected = greedy("llama", PROMPTS, NUM_OUTPUT) * 2
    saboteur = Saboteur(cluster)
    try:
        saboteur.freeze(REDIS)
        async with load(clients) as running:
            assert await answers_of(running) == expected
        await until_ledger_is(clients, False, until)
    finally:
        saboteur.thaw_all()
    await until_ledger_is(clients, True, until)
    await assert_empty(cluster)
