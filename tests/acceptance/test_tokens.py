"""The cluster's tokens are the model's: greedy as transformers has them, sampled as the seed says.

Decode workers have few blocks, so that tasks bind early and late, and under `fcfs` lose their
place half-way.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from transformers import AutoTokenizer

from deploy.local.cluster import LocalCluster
from deploy.local.testing import Saboteur
from tandemserve import AsyncClient, Completion, FinishReason

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
Prompt = tuple[int, ...]
Greedy = Callable[[str, Sequence[Prompt], int], list[tuple[int, ...]]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]

NUM_OUTPUT = 48
# Tokens; with the answer it fits the smallest pool.
# Six chunks; with two tokens of answer it fits the smallest decode worker.
LONG_PROMPT = 180
# One is enough, but for a machine on which answers do not meet.
MAX_ROUNDS = 8
SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95}
# Chunks are of 32 tokens, blocks of 16. Four prompts of each.
LENGTHS = (1, 2, 16, 17, 31, 64, 97, 130)
NUM_REQUESTS = 4 * len(LENGTHS)


@dataclass(frozen=True)
class Serving:
    """One cluster and what it serves."""

    model: str
    policy: str
    dtype: str
    num_decode: int
    num_decode_blocks: int


SERVINGS = {
    "llama-default": Serving("llama", "default", "float32", 2, 32),
    "qwen2-fcfs": Serving("qwen2", "fcfs", "float32", 1, 12),
    "bundled-default": Serving("bundled", "default", "float32", 1, 32),
    "llama-fcfs-bfloat16": Serving("llama", "fcfs", "bfloat16", 1, 12),
}
FLOAT32 = [name for name, serving in SERVINGS.items() if serving.dtype == "float32"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    serving: Serving, start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    async with start_cluster(
        model_folders[serving.model],
        num_decode=serving.num_decode,
        router={"policy": serving.policy},
        prefill={"dtype": serving.dtype},
        decode={"dtype": serving.dtype, "num_blocks": str(serving.num_decode_blocks)},
    ) as running:
        yield running


@pytest.fixture(scope="module")
def serving(request: pytest.FixtureRequest) -> Serving:
    return SERVINGS[request.param]


def prompts(folder: Path, seed: int) -> list[tuple[int, ...]]:
    """Prompts of 1 token to several chunks, from the whole vocabulary without special tokens."""
    print(f"prompts: seed {seed}")
    rng = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    special = set(tokenizer.all_special_ids)
    ids = [token_id for token_id in range(len(tokenizer)) if token_id not in special]
    # The short ones first: they fill a decode worker, and then all want to grow.
    return [tuple(rng.choices(ids, k=length)) for length in LENGTHS for _ in range(4)]


async def all_at_once(
    client: AsyncClient, prompts: Sequence[Prompt] | Mapping[int, Prompt], **options: object
) -> list[Completion]:
    """Answers in order; a prompt's number decides its seed."""
    # A timeout far above what is needed: a hang fails instead of stalling the suite.
    shared = {"max_tokens": NUM_OUTPUT, "ignore_eos": True, "timeout_s": 180.0} | options
    numbered = prompts if isinstance(prompts, Mapping) else dict(enumerate(prompts))
    calls = [
        client.generate(prompt, seed=1000 * number, **shared)  # type: ignore[arg-type]
        for number, prompt in numbered.items()
    ]
    return await asyncio.gather(*calls)


async def early_binding_of_one(
    cluster: LocalCluster, client: AsyncClient, until: Until, stopped_role: str
) -> bool:
    """Of an answer to a prompt of several chunks, while the workers of one role stand still."""
    saboteur = Saboteur(cluster)
    prompt = [3 + number % 300 for number in range(LONG_PROMPT)]

    async def has_blocks_or_waits_for_them() -> bool:
        views = await client.admin.workers()
        granted = [v for v in views if v.role == "decode" and v.num_free_blocks < v.num_blocks]
        is_computed = (await client.admin.status()).num_generation_queued == 1
        return bool(granted) if stopped_role == "prefill" else is_computed

    try:
        views = await client.admin.workers()
        saboteur.freeze(*(view.worker_id for view in views if view.role == stopped_role))
        # Nothing of it is known yet.
        options = {"max_tokens": 2, "timeout_s": 180.0, "cache_salt": stopped_role}
        asking = asyncio.create_task(client.generate(prompt, **options))  # type: ignore[arg-type]
        await until(has_blocks_or_waits_for_them)
    finally:
        saboteur.thaw_all()
    return bool((await asking).timings.early_binding)


@pytest.mark.parametrize("serving", FLOAT32, indirect=True)
async def test_greedy_tokens_are_those_of_generate(
    cluster: LocalCluster,
    serving: Serving,
    greedy: Greedy,
    model_folders: dict[str, Path],
    until: Until,
    assert_empty: AssertEmpty,
) -> None:
    asked = prompts(model_folders[serving.model], seed=11)
    if serving.policy == "default":
        # The long ones first: decode blocks are granted long before they are computed.
        asked.reverse()
    async with cluster.client() as client:
        num_preemptions = 0
        expected = greedy(serving.model, asked, NUM_OUTPUT)
        for _ in range(MAX_ROUNDS):
            answers = await all_at_once(client, asked, temperature=0.0)
            assert [answer.token_ids for answer in answers] == expected
            num_preemptions += sum(answer.timings.num_preemptions for answer in answers)
            if num_preemptions or serving.policy != "fcfs":
                break
        # Whether decode blocks are granted before a prompt is computed depends on who stands still.
        assert await early_binding_of_one(cluster, client, until, "prefill")
        assert not await early_binding_of_one(cluster, client, until, "decode")
    # A model that repeats itself would prove little.
    assert len({token_id for tokens in expected for token_id in tokens}) > 40
    assert num_preemptions > 0 or serving.policy != "fcfs"
    assert {answer.timings.transport for answer in answers} == {"shared_memory"}
    assert len({answer.timings.decode_worker for answer in answers}) == serving.num_decode
    await assert_empty(cluster)


@pytest.mark.parametrize("serving", FLOAT32, indirect=True)
async def test_text_is_what_the_tokenizer_makes_of_the_same_tokens(
    cluster: LocalCluster, serving: Serving, model_folders: dict[str, Path]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folders[serving.model])
    texts = [sentence * 3 for sentence in ("The router asks. ", "你好, привет! ", "a", "Köln ")]
    asked = [tuple(tokenizer(text).input_ids) for text in texts for _ in range(4)]
    async with cluster.client() as client:
        answers = await all_at_once(client, asked, **SAMPLING)
        by_text = await client.generate(texts[0], max_tokens=8, temperature=0.0)
        by_tokens = await client.generate(asked[0], max_tokens=8, temperature=0.0)
    for prompt, answer in zip(asked, answers, strict=True):
        before = tokenizer.decode(prompt, skip_special_tokens=True)
        whole = tokenizer.decode([*prompt, *answer.token_ids], skip_special_tokens=True)
        assert before + answer.text == whole
    assert (by_text.token_ids, by_text.text) == (by_tokens.token_ids, by_tokens.text)


@pytest.mark.parametrize("serving", FLOAT32, indirect=True)
async def test_an_answer_ends_where_the_model_ends_it(
    cluster: LocalCluster, serving: Serving, greedy: Greedy, model_folders: dict[str, Path]
) -> None:
    asked = prompts(model_folders[serving.model], seed=11)
    expected = greedy(serving.model, asked, NUM_OUTPUT)
    # Besides the model's own: a token that ends some of the answers.
    ends = [expected[0][5], expected[1][9]]
    async with cluster.client() as client:
        info = await client.model_info()
        answers = await all_at_once(
            client, asked, temperature=0.0, ignore_eos=False, stop_token_ids=ends
        )
    ends += info.eos_token_ids
    for tokens, answer in zip(expected, answers, strict=True):
        last = next((i for i, token_id in enumerate(tokens) if token_id in ends), None)
        if last is None:
            assert (answer.token_ids, answer.finish_reason) == (tokens, FinishReason.LENGTH)
        else:
            assert answer.token_ids == tokens[: last + 1]
            assert (answer.finish_reason, answer.choices[0].matched_stop) == ("stop", tokens[last])


@pytest.mark.parametrize("serving", list(SERVINGS), indirect=True)
async def test_a_seed_gives_the_same_tokens_alone_and_in_a_full_batch(
    cluster: LocalCluster,
    serving: Serving,
    model_folders: dict[str, Path],
    assert_empty: AssertEmpty,
) -> None:
    asked = prompts(model_folders[serving.model], seed=13)
    async with cluster.client() as client:
        for _ in range(MAX_ROUNDS):
            together = await all_at_once(client, asked, **SAMPLING)
            preempted = [n for n, answer in enumerate(together) if answer.timings.num_preemptions]
            if preempted or serving.policy != "fcfs":
                break
        # One of each length, and some that lost their place on the way.
        numbers = sorted({*range(0, NUM_REQUESTS, 4), *preempted[:4]})
        alone = [(await all_at_once(client, {n: asked[n]}, **SAMPLING))[0] for n in numbers]
        again = await all_at_once(client, {0: asked[0]}, **SAMPLING | {"top_k": 0, "top_p": 1.0})
    assert [together[n].token_ids for n in numbers] == [a.token_ids for a in alone]
    assert sum(answer.timings.num_preemptions for answer in alone) == 0
    assert preempted or serving.policy != "fcfs"
    # The options reach the sampler.
    assert again[0].token_ids != alone[0].token_ids
    await assert_empty(cluster)


@pytest.mark.parametrize("serving", ["llama-default", "llama-fcfs-bfloat16"], indirect=True)
async def test_several_answers_have_the_seeds_that_follow(
    cluster: LocalCluster, serving: Serving, model_folders: dict[str, Path]
) -> None:
    prompt = prompts(model_folders[serving.model], seed=14)[-1]
    largest = 2**64 - 1
    async with cluster.client() as client:
        for seed in (77, largest - 1):
            three = await client.generate(
                prompt, n=3, seed=seed, max_tokens=24, ignore_eos=True, temperature=0.8
            )
            alone = [
                await client.generate(
                    prompt, seed=own, max_tokens=24, ignore_eos=True, temperature=0.8
                )
                for own in (seed, seed + 1, (seed + 2) % 2**64)
            ]
            assert [choice.token_ids for choice in three.choices] == [a.token_ids for a in alone]
            assert len({choice.token_ids for choice in three.choices}) == 3
