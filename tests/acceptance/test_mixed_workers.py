"""Mixed workers as real processes: the model's tokens, whatever an iteration holds."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local.cluster import LocalCluster
from deploy.local.testing import Saboteur
from tandemserve import AsyncClient, Completion, RequestFilter

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
Prompt = tuple[int, ...]
Greedy = Callable[[str, Sequence[Prompt], int], list[tuple[int, ...]]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]

NUM_OUTPUT = 32
# Iterations hold 32 tokens: whole prompts, cut ones, and one that takes several iterations.
LENGTHS = (1, 2, 15, 16, 17, 31, 33, 64, 97, 130)
SEED = 17
# One is enough, but for a machine that holds this process up while answers come to their end.
MAX_ROUNDS = 8


@pytest.mark.parametrize(("policy", "num_prefill"), [("default", 1), ("fcfs", 0)])
async def test_whatever_an_iteration_holds_the_tokens_are_the_models_own(
    policy: str,
    num_prefill: int,
    start_cluster: StartCluster,
    greedy: Greedy,
    model_folders: dict[str, Path],
    assert_empty: AssertEmpty,
) -> None:
    print(f"prompts: seed {SEED}")
    rng = random.Random(SEED)
    prompts = [tuple(rng.choices(range(3, 300), k=n)) for n in LENGTHS for _ in range(2)]
    # The longest answer needs 11 blocks: with few more, answers lose their place.
    num_blocks = "13" if policy == "fcfs" else "40"
    worker = {"max_num_batched_tokens": "32", "num_blocks": num_blocks, "policy": policy}
    async with (
        start_cluster(
            model_folders["qwen2"],
            num_prefill=num_prefill,
            num_decode=0,
            num_mixed=1,
            router={"policy": policy},
            decode=worker,
        ) as cluster,
        cluster.client() as client,
    ):
        shared = {"max_tokens": NUM_OUTPUT, "ignore_eos": True, "timeout_s": 180.0}
        num_preemptions = 0
        for _ in range(MAX_ROUNDS):
            calls = [client.generate(p, temperature=0.0, **shared) for p in prompts]  # type: ignore[arg-type]
            answers = await asyncio.gather(*calls)
            assert [a.token_ids for a in answers] == greedy("qwen2", prompts, NUM_OUTPUT)
            num_preemptions += sum(a.timings.num_preemptions for a in answers)
            if num_preemptions or policy != "fcfs":
                break
        assert {a.timings.decode_worker for a in answers} == {"mixed-0"}
        status = await client.admin.status()
        numbers = (status.num_prefill_workers, status.num_decode_workers, status.num_mixed_workers)
        assert numbers == (num_prefill, 0, 1)
        in_place = [a for a in answers if a.timings.prefill_worker == "mixed-0"]
        assert {a.timings.transport for a in in_place} <= {""}
        assert len(in_place) == len(answers) or num_prefill
        assert num_preemptions > 0 or policy != "fcfs"
        await assert_empty(cluster)


# Two long answers have most of the pool when the others come: there is room for guests only.
NUM_HOSTS, HOST_TOKENS = 2, 400
GUEST_TOKENS = [8, 16, 24, 40, 12, 20, 32, 8, 16, 24, 40] * 3


def crowd() -> list[tuple[Prompt, int]]:
    rng = random.Random(SEED)
    lengths = [HOST_TOKENS] * NUM_HOSTS + GUEST_TOKENS
    return [(tuple(rng.choices(range(3, 300), k=rng.randint(4, 24))), n) for n in lengths]


async def have_hosts_stopped_halfway(
    client: AsyncClient, saboteur: Saboteur, until: Until, hosting: Sequence[asyncio.Future[Any]]
) -> bool:
    """Stop the worker; whether both hosts run there and have at least half of it before them."""

    async def are_hosts_running() -> bool:
        is_over = any(call.done() for call in hosting)
        return is_over or (await client.admin.status()).num_decoding == NUM_HOSTS

    await until(are_hosts_running)
    saboteur.freeze("mixed-0")
    listed = await client.admin.requests(RequestFilter(state="running", phase="decoding"))
    answers = [view.answers[0] for view in listed.requests if view.request_id.startswith("host-")]
    most = max((answer.num_output_tokens for answer in answers), default=HOST_TOKENS)
    return len(answers) == NUM_HOSTS and most <= HOST_TOKENS // 2


async def answers_to_crowd(
    cluster: LocalCluster, client: AsyncClient, until: Until
) -> list[Completion]:
    """All others come at once, when the hosts have begun and have much ahead of them."""
    shared = {"temperature": 0.0, "ignore_eos": True, "timeout_s": 180.0}
    wanted, saboteur = crowd(), Saboteur(cluster)
    calls: list[asyncio.Task[Completion]] = []

    def ask(name: str, wanted: Sequence[tuple[Prompt, int]]) -> None:
        for number, (p, n) in enumerate(wanted):
            asked = client.generate(p, max_tokens=n, request_id=f"{name}-{number}", **shared)  # type: ignore[arg-type]
            calls.append(asyncio.ensure_future(asked))

    async def have_others_come() -> bool:
        status = await client.admin.status()
        return status.num_prompt_queued + status.num_prefilling == len(GUEST_TOKENS)

    try:
        for number in range(MAX_ROUNDS):
            ask(f"host-{number}", wanted[:NUM_HOSTS])
            if await have_hosts_stopped_halfway(client, saboteur, until, calls):
                break
            saboteur.thaw_all()
            await asyncio.gather(*calls)
            calls.clear()
        else:
            raise AssertionError("the hosts were never seen halfway")
        ask("guest", wanted[NUM_HOSTS:])
        await until(have_others_come)
    finally:
        saboteur.thaw_all()
    return await asyncio.gather(*calls)


# PAPERS 1.4.1: guests run inside a host's blocks, and every token is the model's own.
@pytest.mark.parametrize(
    ("policy", "lending"), [("ecoserve", "yes"), ("cacheopt", "yes"), ("ecoserve", "no")]
)
async def test_answers_begin_inside_others_and_no_token_changes(
    policy: str,
    lending: str,
    start_cluster: StartCluster,
    greedy: Greedy,
    model_folders: dict[str, Path],
    until: Until,
    assert_empty: AssertEmpty,
) -> None:
    print(f"prompts: seed {SEED}")
    wanted = crowd()
    worker = {
        "max_num_batched_tokens": "64",
        "num_blocks": "124",
        "block_size": "8",
        "policy": policy,
    }
    async with (
        start_cluster(
            model_folders["qwen2"],
            num_prefill=0,
            num_decode=0,
            num_mixed=1,
            router={"policy": policy, "lending": lending},
            decode=worker,
        ) as cluster,
        cluster.client() as client,
    ):
        answers = await answers_to_crowd(cluster, client, until)
        for length in {n for _, n in wanted}:
            prompts = [p for p, n in wanted if n == length]
            got = [a.token_ids for a, (_, n) in zip(answers, wanted, strict=True) if n == length]
            assert got == greedy("qwen2", prompts, length)
        borrowed = [a.timings.num_blocks_borrowed for a in answers]
        print(f"{policy}: {sum(map(bool, borrowed))} guests, {sum(borrowed)} blocks borrowed")
        assert any(borrowed) == (lending == "yes")
        await assert_empty(cluster)


@dataclass(frozen=True)
class Outlived:
    """Prompts by what becomes of their answers: long ones look short, after so many short ones."""

    hosts: list[Prompt]
    short: list[Prompt]
    long: list[Prompt]
    # What ends a short answer.
    ends: list[int]


def outlived(greedy: Greedy) -> Outlived:
    rng = random.Random(SEED)
    prompts = [tuple(rng.choices(range(3, 300), k=rng.randint(4, 24))) for _ in range(50)]
    hosts, short, long = prompts[:NUM_HOSTS], prompts[NUM_HOSTS:26], prompts[26:]
    return Outlived(hosts, short, long, [tokens[2] for tokens in greedy("qwen2", short, 3)])


async def outlive(
    cluster: LocalCluster, client: AsyncClient, until: Until, asked: Outlived, greedy: Greedy
) -> list[Completion]:
    """The long answers; none where the hosts were not there for them."""
    shared = {"temperature": 0.0, "ignore_eos": True, "timeout_s": 180.0}
    saboteur = Saboteur(cluster)
    # Before any has ended, answers are expected to be as long as they may be.
    hosting = [
        asyncio.ensure_future(
            client.generate(p, max_tokens=HOST_TOKENS, request_id=f"host-{number}", **shared)  # type: ignore[arg-type]
        )
        for number, p in enumerate(asked.hosts)
    ]
    # Then as short as these.
    calls = [
        client.generate(p, max_tokens=96, stop_token_ids=(end,), **shared)  # type: ignore[arg-type]
        for p, end in zip(asked.short, asked.ends, strict=True)
    ]
    assert all(len(a.token_ids) <= 3 for a in await asyncio.gather(*calls))
    longer: list[asyncio.Task[Completion]] = []
    try:
        if await have_hosts_stopped_halfway(client, saboteur, until, hosting):
            longer = [
                asyncio.ensure_future(
                    client.generate(p, max_tokens=96, request_id=f"long-{number}", **shared)  # type: ignore[arg-type]
                )
                for number, p in enumerate(asked.long)
            ]
    finally:
        saboteur.thaw_all()
    answers = await asyncio.gather(*longer)
    hosted = await asyncio.gather(*hosting)
    assert [a.token_ids for a in hosted] == greedy("qwen2", asked.hosts, HOST_TOKENS)
    return answers


# PAPERS 1.4.3, on the real engine: guests and others outlive their predictions, and no token of
# them or of their hosts changes.
async def test_answers_that_are_longer_than_predicted_are_the_models_own(
    start_cluster: StartCluster,
    greedy: Greedy,
    model_folders: dict[str, Path],
    until: Until,
    assert_empty: AssertEmpty,
) -> None:
    print(f"prompts: seed {SEED}")
    asked = outlived(greedy)
    worker = {
        "max_num_batched_tokens": "64",
        "num_blocks": "124",
        "block_size": "8",
        "policy": "ecoserve",
    }
    changes: list[str] = []
    num_guests = 0
    # A cluster each: what an answer's length may be is not known at the start.
    for _ in range(MAX_ROUNDS):
        async with (
            start_cluster(
                model_folders["qwen2"],
                num_prefill=0,
                num_decode=0,
                num_mixed=1,
                router={"policy": "ecoserve"},
                decode=worker,
            ) as cluster,
            cluster.client() as client,
        ):
            answers = await outlive(cluster, client, until, asked, greedy)
            await assert_empty(cluster)
            histories = [await client.admin.request(f"long-{n}") for n in range(len(answers))]
        timelines = [timeline for history in histories for timeline in history.timelines]
        changes += [event.change for timeline in timelines for event in timeline.events]
        if answers:
            assert [a.token_ids for a in answers] == greedy("qwen2", asked.long, 96)
        num_guests += sum(bool(a.timings.num_blocks_borrowed) for a in answers)
        if num_guests:
            break
    num_outgrown, num_preempted = changes.count("outgrown"), changes.count("preempted")
    print(f"{num_guests} guests, {num_outgrown} waited, {num_preempted} preempted")
    assert num_guests
    assert num_outgrown > num_preempted, "most wait in place, few are computed again"
