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
EndedInOrder = Callable[[AsyncClient], Awaitable[list[str]]]

MODEL = "qwen2"
# One is enough, but for a machine that holds this process up while the answer goes on.
MAX_ROUNDS = 20
# In a pool of 29 blocks of 16 tokens the prompt has no room beside the answer.
NUM_BLOCKS = 29
LONG, SHORT = tuple(5 + 7 * i % 300 for i in range(12)), tuple(5 + 11 * i % 300 for i in range(400))
NUM_TOKENS = {"long": 420, "short": 8}
TTFT_S = 5.0
# By then the router has asked for room.
ASKED_S = 0.9 * TTFT_S


class Case:
    """The answer, the prompt, and their worker, which stands still when that is needed."""

    def __init__(self, cluster: LocalCluster, client: AsyncClient, until: Until) -> None:
        self._client = client
        self._until = until
        self.worker = Saboteur(cluster)

    async def ask(self, name: str, prompt: Prompt, ttft_s: float, tpot_s: float) -> Completion:
        return await self._client.generate(
            prompt,
            max_tokens=NUM_TOKENS[name.partition("-")[0]],
            ttft_ms=1000 * ttft_s,
            tpot_ms=1000 * tpot_s,
            temperature=0.0,
            ignore_eos=True,
            request_id=name,
        )

    async def stop_in_mid_answer(self) -> asyncio.Task[Completion]:
        """The long answer under way, with most of it still to come, on a worker that is stopped."""
        for number in range(MAX_ROUNDS):
            name = f"long-{number}"
            asking = asyncio.create_task(self.ask(name, LONG, 60.0, 600.0))

            async def is_under_way(name: str = name) -> bool:
                return await self.num_tokens_of(name) >= 50

            await self._until(is_under_way)
            self.worker.freeze("mixed-0")
            if await self.num_tokens_of(name) <= NUM_TOKENS["long"] // 2:
                return asking
            self.worker.thaw_all()
            await asking
        raise AssertionError("the answer was never seen under way")

    async def num_tokens_of(self, name: str) -> int:
        try:
            return (await self._client.admin.request(name)).request.answers[0].num_output_tokens
        except UnknownName:
            return 0

    async def until_waited_for(self, name: str, seconds: float) -> None:
        async def has_waited() -> bool:
            try:
                return (await self._client.admin.request(name)).request.age_s >= seconds
            except UnknownName:
                return False

        await self._until(has_waited)


@pytest.mark.parametrize("urgent_preempts", ["yes", "no"])
async def test_an_answer_with_time_to_spare_makes_room_for_an_urgent_prompt_and_no_token_changes(
    urgent_preempts: str,
    start_cluster: StartCluster,
    greedy: Greedy,
    model_folders: dict[str, Path],
    until: Until,
    ended_in_order: EndedInOrder,
    assert_empty: AssertEmpty,
) -> None:
    choices = f"preemption=swap,urgent_preempts={urgent_preempts}"
    policy = {"policy": "accelgen", "policy_set": choices}
    worker = policy | {"num_blocks": str(NUM_BLOCKS), "block_size": "16"}
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
        case = Case(cluster, client, until)
        # The router judges by it how little time a long prompt takes.
        await client.generate(SHORT[::-1], max_tokens=1, ttft_ms=60_000.0)
        try:
            # However slow this machine is, the answer does not end before the prompt is urgent.
            long = await case.stop_in_mid_answer()
            short = asyncio.create_task(case.ask("short", SHORT, TTFT_S, 0.2))
            await case.until_waited_for("short", ASKED_S if urgent_preempts == "yes" else 1.0)
        finally:
            case.worker.thaw_all()
        answers = await asyncio.gather(long, short)
        await assert_empty(cluster)
        ended = [name.partition("-")[0] for name in (await ended_in_order(client))[-2:]]
    for answer, prompt in zip(answers, (LONG, SHORT), strict=True):
        num_tokens = len(answer.token_ids)
        assert [answer.token_ids] == greedy(MODEL, [prompt], num_tokens)
    assert [len(answer.token_ids) for answer in answers] == list(NUM_TOKENS.values())
    num_swaps = [answer.timings.num_swaps for answer in answers]
    print(f"ended: {ended}")
    # Whoever goes next depends on how long the prompt still has when this machine gets to it.
    assert num_swaps == [int(urgent_preempts == "yes"), 0]
    assert urgent_preempts == "yes" or ended == ["long", "short"]
