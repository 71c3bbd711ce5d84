"""What exists already is neither computed nor moved again, and the tokens are the same as ever."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import pytest_asyncio

from deploy.local.cluster import LocalCluster
from tandemserve import AsyncClient, ChatMessage, Completion

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
Prompt = tuple[int, ...]
Greedy = Callable[[str, Sequence[Prompt], int], list[Prompt]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]

BLOCK = 16
NUM_OUTPUT = 12
SEED = 20
_rng = random.Random(SEED)


def draw(num_tokens: int) -> Prompt:
    """Tokens of the bundled model, none of them special."""
    return tuple(_rng.choices(range(300, 2000), k=num_tokens))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def roomy(
    start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    """One worker of each kind, with room for everything."""
    async with start_cluster(
        model_folders["bundled"],
        num_decode=1,
        prefill={"max_num_batched_tokens": "256", "dtype": "float32"},
        decode={"num_blocks": "512", "dtype": "float32"},
    ) as running:
        yield running


async def complete(client: AsyncClient, prompt: Prompt) -> Completion:
    return await client.generate(
        prompt, max_tokens=NUM_OUTPUT, temperature=0.0, ignore_eos=True, timeout_s=240.0
    )


async def test_a_second_request_computes_and_moves_only_its_tail(
    roomy: LocalCluster, greedy: Greedy, assert_empty: AssertEmpty
) -> None:
    shared = draw(600)
    asked = [shared + draw(7), shared + draw(20), shared]
    async with roomy.client() as client:
        answers = [await complete(client, prompt) for prompt in asked]
        salted = await client.generate(
            asked[0], max_tokens=2, temperature=0.0, ignore_eos=True, cache_salt="mine"
        )
    assert [a.token_ids for a in answers] == [greedy("bundled", [p], NUM_OUTPUT)[0] for p in asked]
    # 600 tokens are 37 full blocks and 8 tokens.
    assert [a.usage.num_cached_tokens for a in answers] == [0, 592, 592]
    assert [a.timings.num_blocks_moved for a in answers] == [38, 2, 1]
    assert [a.timings.num_blocks_skipped for a in answers] == [0, 37, 37]
    assert salted.usage.num_cached_tokens == 0, "another salt, nothing in common"
    assert salted.timings.num_blocks_skipped == 0, "on the decode worker neither"
    assert salted.timings.num_blocks_moved == 38
    await assert_empty(roomy)


async def test_several_answers_compute_and_move_their_prompt_once(
    roomy: LocalCluster, assert_empty: AssertEmpty
) -> None:
    prompt = draw(1000)
    options = {"max_tokens": 16, "ignore_eos": True, "temperature": 0.9}
    async with roomy.client() as client:
        four = await client.generate(prompt, n=4, seed=5, **options)  # type: ignore[arg-type]
        alone = [
            await client.generate(prompt, seed=seed, cache_salt=str(seed), **options)  # type: ignore[arg-type]
            for seed in (5, 7)
        ]
    assert [four.choices[n].token_ids for n in (0, 2)] == [a.token_ids for a in alone]
    timings = [choice.timings for choice in four.choices]
    # 62 full blocks travel once; the 63rd is partly filled and everybody's own.
    assert sorted(t.num_blocks_moved for t in timings) == [1, 1, 1, 63]
    assert sorted(t.num_blocks_skipped for t in timings) == [0, 62, 62, 62]

    await assert_empty(roomy)


async def test_a_chat_goes_on_where_it_stopped(
    roomy: LocalCluster, assert_empty: AssertEmpty
) -> None:
    messages: list[ChatMessage] = []
    cached: list[int] = []
    skipped: list[int] = []
    async with roomy.client() as client:
        for turn in range(3):
            messages.append(ChatMessage("user", f"Turn {turn}. " + "The quick brown fox. " * 12))
            options = {"max_tokens": 24, "temperature": 0.0, "ignore_eos": True}
            answer = await client.chat(messages, **options)  # type: ignore[arg-type]
            again = await client.chat(messages, cache_salt=f"turn {turn}", **options)  # type: ignore[arg-type]
            assert answer.token_ids == again.token_ids
            messages.append(ChatMessage("assistant", answer.text))
            cached.append(answer.usage.num_cached_tokens)
            skipped.append(answer.timings.num_blocks_skipped)
    assert cached[0] == 0
    assert BLOCK < cached[1] < cached[2]
    assert 1 < skipped[1] < skipped[2]
    await assert_empty(roomy)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def narrow(
    start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    """Two decode workers; no pool holds the prefixes of the test below for long."""
    async with start_cluster(
        model_folders["bundled"],
        num_decode=2,
        prefill={"num_blocks": "40", "max_num_batched_tokens": "128", "dtype": "float32"},
        decode={"num_blocks": "32", "dtype": "float32"},
    ) as running:
        yield running


@pytest.mark.parametrize(("victim", "num_requests"), [(None, 200), ("decode-0", 100)])
async def test_constant_eviction_and_a_killed_worker_cost_no_token_and_no_block(
    narrow: LocalCluster,
    greedy: Greedy,
    assert_empty: AssertEmpty,
    until: Until,
    victim: str | None,
    num_requests: int,
) -> None:
    print(f"prompts: seed {SEED}")
    prefixes = [draw(80) for _ in range(10)]
    asked = [_rng.choice(prefixes) + draw(_rng.choice((1, 9, 16))) for _ in range(num_requests)]
    expected = greedy("bundled", asked, NUM_OUTPUT)
    num_done = 0
    turns = asyncio.Semaphore(24)

    async with narrow.client() as client:

        async def ask(prompt: Prompt) -> Completion:
            nonlocal num_done
            async with turns:
                answer = await complete(client, prompt)
            num_done += 1
            return answer

        async def is_in_the_midst() -> bool:
            return num_done >= 30

        calls = [asyncio.create_task(ask(prompt)) for prompt in asked]
        if victim is not None:
            await until(is_in_the_midst)
            narrow.process(victim).kill()
            narrow.process(victim).start()
        answers = await asyncio.gather(*calls)
        if victim is not None:
            await narrow.wait_ready(victim)
    assert [answer.token_ids for answer in answers] == expected
    num_cached = sum(answer.usage.num_cached_tokens for answer in answers)
    # Some are found, and fewer than in a pool that holds everything.
    assert 0 < num_cached < 80 * (num_requests - 10)
    assert sum(answer.timings.num_blocks_skipped for answer in answers) > 0
    await assert_empty(narrow)
