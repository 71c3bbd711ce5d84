"""Routers are killed, restarted or asked to go: callers get the very answer of a quiet day."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from deploy.local.cluster import LocalCluster
from deploy.local.testing import Saboteur, extra_router
from tandemserve import AsyncClient, Client, Completion, Delta

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]

PATIENCE_S = 120.0
# What a dead router held is free after this long.
LEASE_S = "4"
PROMPT = [5 + i % 300 for i in range(40)]
LONG: dict[str, Any] = {"max_tokens": 250, "ignore_eos": True, "timeout_s": PATIENCE_S}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    async with start_cluster(
        # Its answers are bytes at random: characters are cut by tokens all the time.
        model_folders["llama"],
        router={"lease_ttl_s": LEASE_S},
        decode={"num_blocks": "512"},
    ) as running:
        yield running


async def wishes_of(client: AsyncClient) -> list[dict[str, Any]]:
    """Greedy and sampled, several at once, with logprobs, and with an end in mid-answer."""
    wishes: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.9, "seed": 3},
        {"temperature": 0.7, "seed": 4, "logprobs": 2},
        {"temperature": 0.9, "seed": 5, "n": 3},
    ]
    whole = await client.generate(PROMPT, **LONG, temperature=0.9, seed=6)
    # Two thirds into the answer, and not before.
    at = len(whole.text) * 2 // 3
    wishes.append({"temperature": 0.9, "seed": 6, "stop": [whole.text[at : at + 12]]})
    return wishes


@dataclass
class Asking:
    """Requests under way, and what each has streamed."""

    client: AsyncClient
    wishes: Sequence[dict[str, Any]]
    num_tokens: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.calls = [
            asyncio.create_task(self._follow(number, wish))
            for number, wish in enumerate(self.wishes)
        ]

    async def _follow(self, number: int, wish: dict[str, Any]) -> Completion:
        received: dict[int, list[int]] = {}
        async with self.client.stream(PROMPT, **LONG, **wish) as stream:
            async for event in stream:
                if isinstance(event, Delta):
                    own = received.setdefault(event.index, [])
                    assert event.first_token_index == len(own)
                    own += event.token_ids
                    self.num_tokens[number] = len(own)
            answer = await stream.completion()
        assert [tuple(received[c.index]) for c in answer.choices] == [
            c.token_ids for c in answer.choices
        ]
        return answer

    async def are_in_the_midst(self) -> bool:
        return len(self.num_tokens) == len(self.wishes) and min(self.num_tokens.values()) >= 20

    async def answers(self) -> list[Completion]:
        return list(await asyncio.wait_for(asyncio.gather(*self.calls), PATIENCE_S))


def assert_same(answers: list[Completion], expected: list[Completion]) -> None:
    for answer, right in zip(answers, expected, strict=True):
        for got, wanted in zip(answer.choices, right.choices, strict=True):
            assert got.token_ids == wanted.token_ids
            assert got.text == wanted.text
            assert got.logprobs == wanted.logprobs
            assert (got.finish_reason, got.matched_stop) == (
                wanted.finish_reason,
                wanted.matched_stop,
            )
            assert got.usage.num_output_tokens == wanted.usage.num_output_tokens


async def until_it_serves(until: Until, endpoint: str) -> None:
    async with AsyncClient(endpoint, max_retries=0) as client:

        async def serves() -> bool:
            try:
                views = await client.admin.workers()
            except Exception:  # it is still starting
                return False
            return len(views) == 3 and all(view.state == "ready" for view in views)

        await until(serves)


async def num_computed_at(endpoint: str) -> int:
    async with AsyncClient(endpoint) as client:
        return (await client.admin.status()).num_output_tokens


async def first_on(router_id: str, targets: str) -> AsyncClient:
    """A client of several routers that speaks to this one first."""
    for seed in range(100):
        client = AsyncClient(targets, rng=random.Random(seed), retry_for_s=PATIENCE_S)
        if (await client.admin.status()).router_id == router_id:
            return client
        await client.close()
    raise AssertionError("the choice among routers is not spread")


@pytest.mark.parametrize("how", ["kill", "drain"])
async def test_answers_go_on_at_another_router(
    cluster: LocalCluster,
    model_folders: dict[str, Path],
    assert_empty: AssertEmpty,
    until: Until,
    how: str,
) -> None:
    saboteur = Saboteur(cluster)
    async with extra_router(
        cluster, model_folders["llama"], "router-1", lease_ttl_s=LEASE_S, drain_timeout_s="0.2"
    ) as other:
        await until_it_serves(until, other.endpoint)
        client = await first_on("router-1", f"{other.endpoint},{cluster.endpoint}")
        async with client:
            wishes = await wishes_of(client)
            expected = await Asking(client, wishes).answers()
            num_before = await num_computed_at(cluster.endpoint)
            asking = Asking(client, wishes)
            await until(asking.are_in_the_midst)
            num_received = sum(asking.num_tokens.values())
            if how == "kill":
                other.child.kill()
            else:
                # Nothing ends by itself within the time that it has; a busy cluster, in short.
                saboteur.freeze("decode-0", "decode-1")
                other.child.terminate()
                assert await other.child.wait_ended(PATIENCE_S)
                assert other.child.ended_well
                saboteur.thaw_all()
            assert_same(await asking.answers(), expected)
            assert (await client.admin.status()).router_id == "router-0"
        # It went on; it did not begin again. The newest tokens of each answer come twice.
        num_all = sum(len(choice.token_ids) for answer in expected for choice in answer.choices)
        num_computed = await num_computed_at(cluster.endpoint) - num_before
        assert num_computed < num_all - num_received // 2
    await assert_empty(cluster)


async def test_a_router_that_is_restarted_at_once_is_waited_for(
    cluster: LocalCluster, assert_empty: AssertEmpty, until: Until
) -> None:
    router = cluster.process("router-0")
    async with cluster.client() as client:
        wishes = await wishes_of(client)
        expected = await Asking(client, wishes).answers()
    # Not the launcher's own client, which asks thrice; and a busy machine may need longer for the
    # start of a router than users wait for one.
    async with AsyncClient(cluster.endpoint, retry_for_s=PATIENCE_S) as client:
        asking = Asking(client, wishes)
        await until(asking.are_in_the_midst)
        router.restart()
        assert_same(await asking.answers(), expected)
    await until_it_serves(until, cluster.endpoint)
    await assert_empty(cluster)


async def test_synchronous_code_survives_a_restart_as_well(
    cluster: LocalCluster, assert_empty: AssertEmpty, until: Until
) -> None:
    options: dict[str, Any] = LONG | {"temperature": 0.9, "seed": 8}
    expected = await asyncio.to_thread(read_all, cluster.endpoint, options, lambda: None)

    def restart() -> None:
        Saboteur(cluster).kill("router-0")
        loop.call_soon_threadsafe(Saboteur(cluster).start, "router-0")

    loop = asyncio.get_running_loop()
    assert await asyncio.to_thread(read_all, cluster.endpoint, options, restart) == expected
    await until_it_serves(until, cluster.endpoint)
    await assert_empty(cluster)


def read_all(endpoint: str, options: dict[str, Any], in_mid_answer: Callable[[], None]) -> str:
    """The whole text, by a client without asyncio."""
    client = Client(endpoint, retry_for_s=PATIENCE_S)
    with client, client.stream(PROMPT, **options) as stream:
        pieces, has_acted = [], False
        for event in stream:
            if isinstance(event, Delta):
                pieces.append(event.text)
                if not has_acted and event.first_token_index > 10:
                    has_acted = True
                    in_mid_answer()
        assert "".join(pieces) == stream.completion().text
    return "".join(pieces)
