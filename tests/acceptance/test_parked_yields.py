"""Newcomers and answers whose KV waits in host memory: who goes first, in real processes."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
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
MAX_ROUNDS = 20
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


class Missed(Exception):
    """An answer had come further than the test needs it by the time that its worker stood still."""


class Case:
    """The three answers, and a worker that stands still whenever that is needed."""

    def __init__(
        self, cluster: LocalCluster, client: AsyncClient, until: Until, number: int
    ) -> None:
        self._client = client
        self._until = until
        self._number = number
        self.worker = Saboteur(cluster)
        self.calls: list[asyncio.Task[Completion]] = []

    def id_of(self, name: str) -> str:
        return f"{name}-{self._number}"

    async def ask(self, name: str, phase: str) -> None:
        """Returns when it is in that phase."""
        self.calls.append(asyncio.create_task(self._answer(name)))
        await self.until_phase(name, phase)

    async def until_phase(self, name: str, phase: str) -> None:
        """Raises: Missed when it has ended instead."""

        async def is_there() -> bool:
            if self.calls[-1].done():
                raise Missed
            return await self._phase_of(name) == phase

        await self._until(is_there)

    async def stop(self, name: str, phase: str, most_tokens: int) -> None:
        """The worker stands still; Raises: Missed where this answer is not there any more, or
        the first one has more tokens than that."""
        self.worker.freeze("mixed-0")
        first = (await self._client.admin.request(self.id_of("first"))).request
        is_there = await self._phase_of(name) == phase and first.state == "running"
        if not is_there or first.answers[0].num_output_tokens > most_tokens:
            raise Missed

    async def run(self, newcomer_phase: str) -> list[Completion]:
        """The answers in the order of `NUM_TOKENS`. Raises: Missed."""
        try:
            await self.ask("first", "decoding")
            await self.stop("first", "decoding", 100)
            await self.ask("patient", "prefilling")
            self.worker.thaw("mixed-0")
            await self.until_phase("patient", "generation_queued")
            # It is as long as a few newcomers until the first one ends.
            await self.stop("patient", "generation_queued", NUM_TOKENS["first"] - 50)
            await self.ask("newcomer", newcomer_phase)
        finally:
            self.worker.thaw_all()
            answers = await asyncio.gather(*self.calls)
        return answers

    async def _phase_of(self, name: str) -> str:
        try:
            history = await self._client.admin.request(self.id_of(name))
        except UnknownName:
            return ""
        return history.request.answers[0].phase

    async def _answer(self, name: str) -> Completion:
        return await self._client.generate(
            PROMPTS[name],
            max_tokens=NUM_TOKENS[name],
            tpot_ms=TPOT_MS[name],
            temperature=0.0,
            ignore_eos=True,
            request_id=self.id_of(name),
        )


async def run_case(
    cluster: LocalCluster, client: AsyncClient, until: Until, newcomer_phase: str
) -> tuple[Case, list[Completion]]:
    """Once, but for a machine that holds this process up while answers go on."""
    for number in range(MAX_ROUNDS):
        case = Case(cluster, client, until, number)
        with suppress(Missed):
            return case, await case.run(newcomer_phase)
    raise AssertionError("the answers were never seen where they had to be")


@pytest.mark.parametrize("is_yielding", [True, False])
async def test_a_newcomer_that_is_due_sooner_goes_before_a_parked_answer_where_that_yields(
    is_yielding: bool,
    start_cluster: StartCluster,
    greedy: Greedy,
    model_folders: dict[str, Path],
    until: Until,
    ended_in_order: EndedInOrder,
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
        # Where it may go, its prompt is sent at once, though its worker does nothing now.
        newcomer_phase = "prefilling" if is_yielding else "prompt_queued"
        case, answers = await run_case(cluster, client, until, newcomer_phase)
        await assert_empty(cluster)
        ended = [name for name in await ended_in_order(client) if name in map(case.id_of, PROMPTS)]
    for name, answer in zip(NUM_TOKENS, answers, strict=True):
        assert [answer.token_ids] == greedy(MODEL, [PROMPTS[name]], NUM_TOKENS[name])
    assert [answer.timings.num_swaps for answer in answers] == [0, 1, 0]
    if is_yielding:
        assert ended == [case.id_of(name) for name in ("newcomer", "first", "patient")]
    else:
        assert ended[0] == case.id_of("first"), "nothing starts before the parked answer goes on"
