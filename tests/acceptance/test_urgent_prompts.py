"""A prompt that cannot wait and an answer that can: who gets the memory, in real processes."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from deploy.local.cluster import LocalCluster
from deploy.local.testing import Saboteur
from tandemserve import AsyncClient, Completion, UnknownName

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
Prompt = tuple[int, ...]
Greedy = Callable[[str, Sequence[Prompt], int], list[Prompt]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]

MODEL = "qwen2"
# In a pool of 29 blocks of 16 tokens the prompt has no room beside the answer.
NUM_BLOCKS = 29
LONG, SHORT = tuple(5 + 7 * i % 300 for i in range(12)), tuple(5 + 11 * i % 300 for i in range(400))
NUM_TOKENS = {"long": 420, "short": 8}
TTFT_S = 8.0
# By then the router has asked for room.
ASKED_S = 0.9 * TTFT_S


async def state_of(client: AsyncClient, name: str) -> tuple[float, int]:
    """Its age in seconds, and how many tokens it has got."""
    try:
        request = (await client.admin.request(name)).request
    except UnknownName:
        return 0.0, 0
    return request.age_s, request.answers[0].num_output_tokens


@pytest.mark.parametrize("urgent_preempts", ["yes", "no"])
async def test_an_answer_with_time_to_spare_makes_room_for_an_urgent_prompt_and_no_token_changes(
    urgent_preempts: str,
    start_cluster: StartCluster,
    greedy: Greedy,
    model_folders: dict[str, Path],
    until: Until,
    assert_empty: AssertEmpty,
) -> None:
    choices = f"preemption=swap,urgent_preempts={urgent_preempts}"
    policy = {"policy": "accelgen", "policy_set": choices}
    worker = policy | {"num_blocks": str(NUM_BLOCKS), "block_size": "16"}
    ended: list[str] = []

    async def ask(
        client: AsyncClient, name: str, prompt: Prompt, ttft_s: float, tpot_s: float
    ) -> Completion:
        answer = await client.generate(
            prompt,
            max_tokens=NUM_TOKENS[name],
            ttft_ms=1000 * ttft_s,
            tpot_ms=1000 * tpot_s,
            temperature=0.0,
            ignore_eos=True,
            request_id=name,
        )
        ended.append(name)
        return answer

    async with (
        start_cluster(
            model_folders[MODEL],
            num_prefill=0,
            num_decode=0,
            num_mixed=1,
            router=policy,
            decode=worker,
        ) as cluster,
        cluster.client() as client,
    ):
        saboteur = Saboteur(cluster)
        # The router judges by it how little time a long prompt takes.
        await client.generate(SHORT[::-1], max_tokens=1, ttft_ms=60_000.0)
        long = asyncio.create_task(ask(client, "long", LONG, 60.0, 600.0))

        async def is_under_way() -> bool:
            return (await state_of(client, "long"))[1] >= 100

        async def has_waited() -> bool:
            enough_s = ASKED_S if urgent_preempts == "yes" else 1.0
            return (await state_of(client, "short"))[0] >= enough_s

        try:
            await until(is_under_way)
            # However slow this machine is, the answer does not end before the prompt is urgent.
            saboteur.freeze("mixed-0")
            short = asyncio.create_task(ask(client, "short", SHORT, TTFT_S, 0.2))
            await until(has_waited)
        finally:
            saboteur.thaw_all()
        answers = await asyncio.gather(long, short)
        await assert_empty(cluster)
    for answer, prompt in zip(answers, (LONG, SHORT), strict=True):
        num_tokens = len(answer.token_ids)
        assert [answer.token_ids] == greedy(MODEL, [prompt], num_tokens)
    assert [len(answer.token_ids) for answer in answers] == list(NUM_TOKENS.values())
    num_swaps = [answer.timings.num_swaps for answer in answers]
    print(f"ended: {ended}")
    # Whoever goes next depends on how long the prompt still has when this machine gets to it.
    assert num_swaps == [int(urgent_preempts == "yes"), 0]
    assert urgent_preempts == "yes" or ended == ["long", "short"]
