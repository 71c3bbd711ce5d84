"""Newcomers and answers whose KV waits in host memory: who goes first, in real processes."""

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
# Who came last makes room, and its KV goes to host memory.
CHOICES = "victims=last-arrived,preemption=swap,reserves_more_again=yes"
# Two answers fill the pool of 29 blocks of 16 halfway; whoever then makes room needs the other half
# and more, so it waits until the other has ended.
NUM_BLOCKS = 29
NUM_TOKENS = {"first": 420, "patient": 300, "newcomer": 8}
PROMPTS = {
    name: tuple(5 + (i * step) % 300 for i in range(12))
    for name, step in (("first", 7), ("patient", 11), ("newcomer", 13))
}
# Whoever makes room is ahead of its goal for as long as this takes.
TPOT_MS = {"first": 200.0, "patient": 600_000.0, "newcomer": 200.0}


class Case:
    """The three answers, and a worker that stands still whenever that is needed."""

    def __init__(self, cluster: LocalCluster, client: AsyncClient, until: Until) -> None:
        self._client = client
        self._until = until
        self.worker = Saboteur(cluster)
        self.calls: list[asyncio.Task[Completion]] = []
        # Names, in this order.
        self.ended: list[str] = []

    async def ask(self, name: str, phase: str) -> None:
        """Returns when it is in that phase."""
        self.calls.append(asyncio.create_task(self._answer(name)))
        await self.until_phase(name, phase)

    async def until_phase(self, name: str, phase: str) -> None:
        async def is_there() -> bool:
            assert not self.calls[-1].done(), f"{name} was never seen {phase}"
            try:
                history = await self._client.admin.request(name)
            except UnknownName:
                return False
            return history.request.answers[0].phase == phase

        await self._until(is_there)

    async def _answer(self, name: str) -> Completion:
        answer = await self._client.generate(
            PROMPTS[name],
            max_tokens=NUM_TOKENS[name],
            tpot_ms=TPOT_MS[name],
            temperature=0.0,
            ignore_eos=True,
            request_id=name,
        )
        self.ended.append(name)
        return answer


@pytest.mark.parametrize("is_yielding", [True, False])
async def test_a_newcomer_that_is_due_sooner_goes_before_a_parked_answer_where_that_yields(
    is_yielding: bool,
    start_cluster: StartCluster,
    greedy: Greedy,
    model_folders: dict[str, Path],
    until: Until,
    assert_empty: AssertEmpty,
) -> None:
    choices = f"{CHOICES},parked_yields={'yes' if is_yielding else 'no'}"
    policy = {"policy": "fcfs", "policy_set": choices}
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
        try:
            await case.ask("first", "decoding")
            case.worker.freeze("mixed-0")
            await case.ask("patient", "prefilling")
            case.worker.thaw("mixed-0")
            await case.until_phase("patient", "generation_queued")
            case.worker.freeze("mixed-0")
            # Where it may go, its prompt is sent at once, though its worker does nothing now.
            await case.ask("newcomer", "prefilling" if is_yielding else "prompt_queued")
        finally:
            case.worker.thaw_all()
        answers = await asyncio.gather(*case.calls)
        await assert_empty(cluster)
    for name, answer in zip(NUM_TOKENS, answers, strict=True):
        assert [answer.token_ids] == greedy(MODEL, [PROMPTS[name]], NUM_TOKENS[name])
    assert [answer.timings.num_swaps for answer in answers] == [0, 1, 0]
    if is_yielding:
        assert case.ended == ["newcomer", "first", "patient"]
    else:
        assert case.ended[0] == "first", "nothing new starts before the parked answer has gone on"
