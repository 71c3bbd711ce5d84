"""Mixed workers as real processes: the model's tokens, whatever an iteration holds."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from deploy.local.cluster import LocalCluster
from deploy.local.testing import Saboteur
from tandemserve import AsyncClient, Completion

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
        calls = [client.generate(p, temperature=0.0, **shared) for p in prompts]  # type: ignore[arg-type]
        answers = await asyncio.gather(*calls)
        assert [a.token_ids for a in answers] == greedy("qwen2", prompts, NUM_OUTPUT)
        assert {a.timings.decode_worker for a in answers} == {"mixed-0"}
        status = await client.admin.status()
        numbers = (status.num_prefill_workers, status.num_decode_workers, status.num_mixed_workers)
        assert numbers == (num_prefill, 0, 1)
        in_place = [a for a in answers if a.timings.prefill_worker == "mixed-0"]
        assert {a.timings.transport for a in in_place} <= {""}
        assert len(in_place) == len(answers) or num_prefill
        if policy == "fcfs":
            assert sum(a.timings.num_preemptions for a in answers) > 0
        await assert_empty(cluster)


# Two long answers have most of the pool when the others come: there is room for guests only.
NUM_HOSTS, HOST_TOKENS = 2, 400
GUEST_TOKENS = [8, 16, 24, 40, 12, 20, 32, 8, 16, 24, 40] * 3


def crowd() -> list[tuple[Prompt, int]]:
    rng = random.Random(SEED)
    lengths = [HOST_TOKENS] * NUM_HOSTS + GUEST_TOKENS
    return [(tuple(rng.choices(range(3, 300), k=rng.randint(4, 24))), n) for n in lengths]


async def answers_to_crowd(
    cluster: LocalCluster, client: AsyncClient, until: Until
) -> list[Completion]:
    """All others come at once, when the hosts have begun and have all but all ahead of them."""
    shared = {"temperature": 0.0, "ignore_eos": True, "timeout_s": 180.0}
    calls: list[asyncio.Task[Completion]] = []

    def ask(wanted: Sequence[tuple[Prompt, int]]) -> None:
        asked = (client.generate(p, max_tokens=n, **shared) for p, n in wanted)  # type: ignore[arg-type]
        calls.extend(map(asyncio.ensure_future, asked))

    async def are_hosts_running() -> bool:
        return (await client.admin.status()).num_decoding == NUM_HOSTS

    async def have_others_come() -> bool:
        status = await client.admin.status()
        return status.num_prompt_queued + status.num_prefilling == len(GUEST_TOKENS)

    wanted, saboteur = crowd(), Saboteur(cluster)
    ask(wanted[:NUM_HOSTS])
    try:
        await until(are_hosts_running)
        saboteur.freeze("mixed-0")
        ask(wanted[NUM_HOSTS:])
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


# PAPERS 1.4.3, on the real engine: guests and others outlive their predictions, and no token of
# them or of their hosts changes.
async def test_answers_that_are_longer_than_predicted_are_the_models_own(
    start_cluster: StartCluster,
    greedy: Greedy,
    model_folders: dict[str, Path],
    assert_empty: AssertEmpty,
) -> None:
    print(f"prompts: seed {SEED}")
    rng = random.Random(SEED)
    prompts = [tuple(rng.choices(range(3, 300), k=rng.randint(4, 24))) for _ in range(50)]
    hosts, short, long = prompts[:2], prompts[2:26], prompts[26:]
    ends = [tokens[2] for tokens in greedy("qwen2", short, 3)]
    worker = {
        "max_num_batched_tokens": "64",
        "num_blocks": "72",
        "block_size": "8",
        "policy": "ecoserve",
    }
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
        shared = {"temperature": 0.0, "ignore_eos": True, "timeout_s": 180.0}
        # Before any has ended, answers are expected to be as long as they may be.
        hosting = [
            asyncio.ensure_future(client.generate(p, max_tokens=200, **shared))  # type: ignore[arg-type]
            for p in hosts
        ]
        # Then as short as these.
        calls = [
            client.generate(p, max_tokens=200, stop_token_ids=(end,), **shared)  # type: ignore[arg-type]
            for p, end in zip(short, ends, strict=True)
        ]
        assert all(len(a.token_ids) <= 3 for a in await asyncio.gather(*calls))
        calls = [
            client.generate(p, max_tokens=96, request_id=f"long-{number}", **shared)  # type: ignore[arg-type]
            for number, p in enumerate(long)
        ]
        answers = await asyncio.gather(*calls)
        assert [a.token_ids for a in answers] == greedy("qwen2", long, 96)
        hosted = await asyncio.gather(*hosting)
        assert [a.token_ids for a in hosted] == greedy("qwen2", hosts, 200)
        await assert_empty(cluster)
        histories = [await client.admin.request(f"long-{n}") for n in range(len(long))]
        timelines = [timeline for history in histories for timeline in history.timelines]
        changes = [event.change for timeline in timelines for event in timeline.events]
        num_guests = sum(bool(a.timings.num_blocks_borrowed) for a in answers)
        num_outgrown, num_preempted = changes.count("outgrown"), changes.count("preempted")
        print(f"{num_guests} guests, {num_outgrown} waited again, {num_preempted} computed again")
        assert num_guests
        assert num_outgrown > num_preempted
