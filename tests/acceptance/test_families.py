"""Every family of models through a whole cluster: tokens as transformers' generate has them.

Prompts are cut into chunks, prefixes are found again, pools are so small that sequences lose their
place: on one decode worker their KV moves to host memory, on the other it is computed again. At
last one of the two is killed.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploy.local.child import ChildProcess
from deploy.local.cluster import LocalCluster
from deploy.local.testing import Saboteur
from engine.testing import FAMILIES
from tandemserve import AsyncClient, Completion, Delta, RequestFilter

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
ExtraWorker = Callable[..., AbstractAsyncContextManager[ChildProcess]]
Tokens = tuple[int, ...]
Greedy = Callable[[str, Sequence[Tokens], int], list[Tokens]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]

NUM_OUTPUT = 40
SEED = 23
# Chunks are of 32 tokens, blocks of 16, windows of 24. Room for half of an answer is reserved: a
# full worker has two or three sequences, and all come to the end of their room together.
DECODE = {"num_blocks": "12"}
NUM_SHORT, NUM_LONG, NUM_SHARED = 33, 97, 80
# Which sequences meet on which worker depends on time; most often one round is enough.
MAX_ROUNDS = 30
LIKELY: dict[str, Any] = {"temperature": 0.0}
DRAWN: dict[str, Any] = {"temperature": 0.8, "top_p": 0.95, "seed": SEED}
KILLED, SURVIVOR = "decode-0", "decode-1"


def draw_prompts() -> tuple[list[Tokens], list[Tokens]]:
    """Short ones, and long ones that begin alike."""
    print(f"prompts: seed {SEED}")
    rng = random.Random(SEED)

    def draw(length: int) -> Tokens:
        return tuple(rng.choices(range(3, 320), k=length))

    prefix = draw(NUM_SHARED)
    return [draw(NUM_SHORT) for _ in range(6)], [
        prefix + draw(NUM_LONG - NUM_SHARED) for _ in range(2)
    ]


@dataclass
class Case:
    """A cluster, and what it has to answer."""

    cluster: LocalCluster
    client: AsyncClient
    until: Until
    short: list[Tokens]
    long: list[Tokens]
    # As transformers says.
    likely: dict[Tokens, Tokens]
    # As the cluster says when it has nothing else to do.
    drawn: dict[Tokens, Tokens]

    async def answer(self, prompt: Tokens, sampling: dict[str, Any], **options: Any) -> Completion:
        # A timeout far above what is needed: a hang fails instead of stalling the suite.
        shared = {"max_tokens": NUM_OUTPUT, "ignore_eos": True, "timeout_s": 180.0}
        return await self.client.generate(prompt, **shared | sampling | options)

    async def crowd(self, salt: str) -> list[Completion]:
        """All prompts at once, the last few also drawn; all answers are right."""
        asked = [*self.short, *self.long]
        drawn = list(self.drawn)
        answers = await asyncio.gather(
            *(self.answer(prompt, LIKELY, cache_salt=salt) for prompt in asked),
            *(self.answer(prompt, DRAWN, cache_salt=salt) for prompt in drawn),
        )
        expected = [self.likely[prompt] for prompt in asked]
        assert [a.token_ids for a in answers] == expected + [self.drawn[p] for p in drawn]
        return answers

    async def read(self, reading: "Reading") -> int:
        """Read an answer as it comes; it is right. Returns how often its worker was lost."""
        async with self.client.stream(
            reading.prompt,
            request_id=reading.request_id,
            max_tokens=NUM_OUTPUT,
            ignore_eos=True,
            timeout_s=180.0,
            **reading.sampling,
        ) as stream:
            async for event in stream:
                if isinstance(event, Delta):
                    assert event.first_token_index == len(reading.received)
                    reading.received += event.token_ids
            completion = await stream.completion()
        known = self.likely if reading.sampling is LIKELY else self.drawn
        assert tuple(reading.received) == completion.token_ids == known[reading.prompt]
        return completion.timings.num_migrations

    async def on(self, worker_id: str, readings: list["Reading"]) -> list["Reading"]:
        """Those that this decode worker computes, and of which much is still to come."""
        wanted = RequestFilter(state="running", phase="decoding", worker_id=worker_id)
        far_from_end = {
            view.request_id
            for view in (await self.client.admin.requests(wanted)).requests
            if all(answer.num_output_tokens < NUM_OUTPUT - 10 for answer in view.answers)
        }
        return [reading for reading in readings if reading.request_id in far_from_end]


@dataclass
class Reading:
    """An answer, as far as it has come."""

    request_id: str
    prompt: Tokens
    sampling: dict[str, Any]
    received: list[int] = field(default_factory=list)

    @property
    def is_in_mid_decode(self) -> bool:
        return 4 < len(self.received) < NUM_OUTPUT


@asynccontextmanager
async def two_ways_to_make_room(
    start_cluster: StartCluster, extra_worker: ExtraWorker, model: Path, until: Until
) -> AsyncIterator[LocalCluster]:
    """One decode worker keeps KV in host memory when it needs room, the other does not."""
    async with (
        start_cluster(
            model,
            num_decode=1,
            router={"policy": "fcfs"},
            decode=DECODE | {"preemption": "swap"},
        ) as cluster,
        extra_worker(cluster, "decode_worker", model, SURVIVOR, **DECODE, preemption="recompute"),
    ):

        async def is_ready() -> bool:
            return any(
                (view.worker_id, view.state) == (SURVIVOR, "ready")
                for view in await cluster.workers()
            )

        await until(is_ready)
        yield cluster


async def check_prefix_hits(case: Case) -> None:
    first, second = [await case.answer(prompt, LIKELY) for prompt in case.long]
    assert [first.token_ids, second.token_ids] == [case.likely[prompt] for prompt in case.long]
    cached = first.usage.num_cached_tokens, second.usage.num_cached_tokens
    assert cached == (0, NUM_SHARED)


async def check_preemption(case: Case) -> None:
    num_swaps = num_recomputed = 0
    for number in range(MAX_ROUNDS):
        answers = await case.crowd(salt=f"round {number}")
        num_swaps += sum(each.timings.num_swaps for each in answers)
        num_recomputed += sum(
            each.timings.num_preemptions - each.timings.num_swaps for each in answers
        )
        if num_swaps and num_recomputed:
            break
    print({"rounds": number + 1, "swaps": num_swaps, "recomputed": num_recomputed})
    assert num_swaps > 0
    assert num_recomputed > 0


async def was_killed_in_mid_decode(case: Case, number: int) -> bool:
    """Read answers until the worker is seen at work, and kill it; False where all ended before."""
    saboteur = Saboteur(case.cluster)
    wanted = [
        *((p, LIKELY) for p in (*case.short[:3], case.long[0])),
        *((p, DRAWN) for p in case.drawn),
    ]
    readings = [Reading(f"read-{number}-{order}", *each) for order, each in enumerate(wanted)]
    hit: list[Reading] = []

    async def is_frozen_in_mid_decode() -> bool:
        """Frozen first, so that nothing ends while it is asked what is there."""
        if any(reading.is_in_mid_decode for reading in readings):
            saboteur.freeze(KILLED)
            hit[:] = [r for r in await case.on(KILLED, readings) if r.is_in_mid_decode]
            if not hit:
                saboteur.thaw(KILLED)
        return bool(hit) or all(read.done() for read in reads.values())

    async with asyncio.TaskGroup() as group:
        reads = {each.request_id: group.create_task(case.read(each)) for each in readings}
        await case.until(is_frozen_in_mid_decode)
        if hit:
            print("received before the kill:", {r.request_id: len(r.received) for r in hit})
            saboteur.kill(KILLED)
    assert all(reads[each.request_id].result() > 0 for each in hit)
    return bool(hit)


async def check_kill(case: Case) -> None:
    # One round, but for a machine that holds this process up while answers come to their end.
    for number in range(MAX_ROUNDS):
        if await was_killed_in_mid_decode(case, number):
            break
    else:
        raise AssertionError(f"{KILLED} was never seen in mid-decode")

    async def is_empty() -> bool:
        workers = await case.client.admin.workers()
        left = [view for view in workers if view.worker_id != KILLED]
        holdings = (await case.client.admin.reservations()).holdings
        return not holdings and all(view.num_free_blocks == view.num_blocks for view in left)

    await case.until(is_empty)


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_family_answers_as_transformers_does_whatever_happens(
    family: str,
    start_cluster: StartCluster,
    extra_worker: ExtraWorker,
    greedy: Greedy,
    model_folders: dict[str, Path],
    assert_empty: AssertEmpty,
    until: Until,
) -> None:
    short, long = draw_prompts()
    asked = [*short, *long]
    expected = greedy(family, asked, NUM_OUTPUT)
    # A model that repeats itself would prove little.
    assert len({token_id for tokens in expected for token_id in tokens}) > 40
    model = model_folders[family]
    async with (
        two_ways_to_make_room(start_cluster, extra_worker, model, until) as cluster,
        cluster.client() as client,
    ):
        likely = dict(zip(asked, expected, strict=True))
        case = Case(cluster, client, until, short, long, likely, drawn={})
        for prompt in short[-2:]:
            case.drawn[prompt] = (await case.answer(prompt, DRAWN)).token_ids
        await check_prefix_hits(case)
        await check_preemption(case)
        await assert_empty(cluster)
        await check_kill(case)
