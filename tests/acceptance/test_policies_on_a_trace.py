"""Every policy on the same requests of a recorded trace: other orders, the same tokens."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TypeAlias

import pytest

from deploy.local.cluster import LocalCluster
from scheduling.policies import POLICIES
from simulator.traces.reading import read_workload
from simulator.traces.workload import TraceRequest
from tandemserve import AsyncClient, Completion

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

StartCluster: TypeAlias = Callable[..., AbstractAsyncContextManager[LocalCluster]]
Prompt: TypeAlias = tuple[int, ...]
Greedy: TypeAlias = Callable[[str, Sequence[Prompt], int], list[tuple[int, ...]]]
AssertEmpty: TypeAlias = Callable[..., Awaitable[float]]

SEED = 23
MODEL = "qwen2"
SAMPLE = Path(__file__).parents[2] / "simulator/traces/samples/azure_2023_conv.csv"
NUM_REQUESTS, MAX_ROUNDS = 48, 8
# Prompts and answers of tens of tokens.
SHORTER = 16
# Of a worker that computes answers.
NUM_BLOCKS, BLOCK_SIZE = 16, 16
SERVED = [policy.name for policy in POLICIES.values() if not policy.needs_foresight]
# Answers grow beyond what they were given, and so few blocks are there that some make room.
MAKES_ROOM = {"fcfs", "sarathi", "vllm", "accelgen", "fastserve"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of the trace, made shorter."""

    prompt: Prompt
    num_tokens: int
    # Greedy without it.
    seed: int | None

    @property
    def num_blocks(self) -> int:
        """Of KV, at its end."""
        return -(-(len(self.prompt) + self.num_tokens) // BLOCK_SIZE)

    async def of(self, client: AsyncClient) -> Completion:
        """The whole answer."""
        return await client.generate(
            self.prompt,
            max_tokens=self.num_tokens,
            ignore_eos=True,
            timeout_s=180.0,
            temperature=0.0 if self.seed is None else 0.9,
            seed=self.seed,
        )


def asked() -> list[Asked]:
    rng = random.Random(SEED)

    def shortened(number: int, one: TraceRequest) -> Asked:
        num_prompt = min(130, -(-one.num_prompt_tokens // SHORTER))
        prompt = tuple(rng.choices(range(3, 300), k=num_prompt))
        num_tokens = min(48, max(2, one.num_output_tokens // SHORTER * 2))
        seed = None if number % 2 else number
        return Asked(prompt, num_tokens, seed)

    requests = read_workload(SAMPLE).requests[:NUM_REQUESTS]
    return [shortened(number, one) for number, one in enumerate(requests)]


@asynccontextmanager
async def cluster_of(start: StartCluster, model: Path, policy: str) -> AsyncIterator[LocalCluster]:
    """Two workers: both mixed, or one for prefill and one for decode."""
    is_apart = POLICIES[policy].is_disaggregated
    async with start(
        model,
        num_prefill=1 if is_apart else 0,
        num_decode=1 if is_apart else 0,
        num_mixed=0 if is_apart else 2,
        router={"policy": policy},
        prefill={"policy": policy},
        decode={
            "policy": policy,
            "num_blocks": str(NUM_BLOCKS),
            "block_size": str(BLOCK_SIZE),
            "max_num_batched_tokens": "64",
        },
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def sampled() -> dict[Asked, tuple[int, ...]]:
    """What the first policy said where tokens are drawn; every other one has to say the same."""
    return {}


@pytest.mark.parametrize("policy", SERVED)
async def test_every_policy_gives_the_same_tokens(
    policy: str,
    sampled: dict[Asked, tuple[int, ...]],
    start_cluster: StartCluster,
    greedy: Greedy,
    model_folders: dict[str, Path],
    assert_empty: AssertEmpty,
) -> None:
    print(f"prompts: seed {SEED}")
    wanted = asked()
    # All at once: far more than two workers have room for, so that every policy has to choose.
    assert sum(one.num_blocks for one in wanted) > 5 * 2 * NUM_BLOCKS
    async with (
        cluster_of(start_cluster, model_folders[MODEL], policy) as cluster,
        cluster.client() as client,
    ):
        made_room = 0
        # Once, but for a machine on which few answers meet.
        for _ in range(MAX_ROUNDS):
            answers = await asyncio.gather(*(one.of(client) for one in wanted))
            made_room += sum(answer.timings.num_preemptions for answer in answers)
            if made_room or policy not in MAKES_ROOM:
                break
        await assert_empty(cluster)
    print(f"{policy}: answers made room {made_room} times")
    said = dict(zip(wanted, (answer.token_ids for answer in answers), strict=True))
    by_length = sorted((one for one in wanted if one.seed is None), key=lambda one: one.num_tokens)
    for num_tokens, group in groupby(by_length, key=lambda one: one.num_tokens):
        alike = list(group)
        expected = greedy(MODEL, [one.prompt for one in alike], num_tokens)
        assert [said[one] for one in alike] == expected
    drawn = {one: tokens for one, tokens in said.items() if one.seed is not None}
    assert drawn == (sampled or drawn)
    sampled.update(drawn)
    assert made_room or policy not in MAKES_ROOM
