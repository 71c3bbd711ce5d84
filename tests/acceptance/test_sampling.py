"""Every sampling option through a whole cluster: what one engine alone makes of it, to the bit.

Decode workers have few blocks, so that answers lose their place half-way; then one is killed.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
import transformers

from deploy.local.cluster import LocalCluster
from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_runner import ModelRunner
from engine.testing import TrialRequest, TrialResult, run_together
from scheduling.sampling import SamplingParams
from tandemserve import AsyncClient, Completion, Delta, InvalidRequest, PromptLogprobs

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]
Reference = Callable[[Sequence[TrialRequest]], list[TrialResult]]

NUM_OUTPUT = 40
MAX_ROUNDS = 10
BLOCK_SIZE, NUM_BLOCKS = 16, 512
_rng = random.Random(8)
# Chunks are of 32 tokens: some prompts need several.
PROMPTS = [tuple(_rng.choices(range(3, 320), k=n)) for n in (1, 20, 33, 97, 130)]
PLAIN: dict[str, Any] = {"temperature": 0.8}
BANNED, WANTED = 40, 77
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "min_p": {"temperature": 1.5, "min_p": 0.3},
    "repetition": {"temperature": 0.0, "repetition_penalty": 1.5},
    "presence": PLAIN | {"presence_penalty": 2.0},
    "frequency": PLAIN | {"frequency_penalty": -2.0},
    "logit_bias": PLAIN | {"logit_bias": {BANNED: -100.0, WANTED: 25.0}},
    "all": {
        "temperature": 1.2,
        "min_p": 0.02,
        "top_k": 60,
        "top_p": 0.97,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.4,
        "logit_bias": {WANTED: 2.0},
    },
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    async with start_cluster(
        model_folders["llama"],
        num_decode=2,
        router={"policy": "fcfs"},
        decode={"num_blocks": "12"},
    ) as running:
        yield running


@pytest.fixture(scope="module")
def reference(model_folders: dict[str, Path]) -> Reference:
    """One engine in this process."""
    torch.set_num_threads(1)
    model = load_model(model_folders["llama"])
    config = model.config
    layout = KvLayout(
        config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, "float32"
    )

    def run(requests: Sequence[TrialRequest]) -> list[TrialResult]:
        runner = ModelRunner(model, KvPool(layout, NUM_BLOCKS), max_num_seqs=len(requests))
        return run_together(runner, requests, BLOCK_SIZE, NUM_BLOCKS)

    return run


def params_of(options: dict[str, Any], seed: int) -> SamplingParams:
    """As the engine gets them; numbers travel in 32 bits."""
    values: dict[str, Any] = {
        name: float(np.float32(value)) if isinstance(value, float) else value
        for name, value in options.items()
    }
    biases = tuple(values.pop("logit_bias", {}).items())
    return SamplingParams(seed=seed, logit_bias=biases, num_logprobs=3, **values)


def cases() -> list[tuple[str, int, tuple[int, ...]]]:
    """Name of the options, seed, prompt."""
    return [(name, number, prompt) for name in OPTIONS for number, prompt in enumerate(PROMPTS)]


async def all_at_once(client: AsyncClient, **shared: Any) -> list[Completion]:
    return await asyncio.gather(
        *(
            client.generate(
                prompt,
                seed=seed,
                logprobs=3,
                max_tokens=NUM_OUTPUT,
                ignore_eos=True,
                timeout_s=240.0,
                **(OPTIONS[name] | shared),
            )
            for name, seed, prompt in cases()
        )
    )


def expected_of(reference: Reference) -> list[TrialResult]:
    return reference(
        [
            TrialRequest(prompt, NUM_OUTPUT, params_of(OPTIONS[name], seed))
            for name, seed, prompt in cases()
        ]
    )


def assert_equal(answers: Sequence[Completion], expected: Sequence[TrialResult]) -> None:
    for answer, result in zip(answers, expected, strict=True):
        assert list(answer.token_ids) == result.token_ids
        found = [
            (entry.logprob, tuple((top.token_id, top.logprob) for top in entry.top))
            for entry in answer.choices[0].logprobs
        ]
        assert found == [(entry.logprob, entry.top) for entry in result.logprobs if entry]
        assert len(found) == len(answer.token_ids)


async def plain_answers(client: AsyncClient, stops: Sequence[str] = ()) -> list[Completion]:
    """To each prompt the plain answer, or what comes of it before its stop string."""
    return await asyncio.gather(
        *(
            client.generate(
                prompt,
                seed=number,
                stop=[stops[number], "never said"] if stops else None,
                max_tokens=NUM_OUTPUT,
                ignore_eos=True,
                timeout_s=240.0,
                **PLAIN,
            )
            for number, prompt in enumerate(PROMPTS)
        )
    )


async def test_each_option_gives_what_one_engine_alone_gives_also_after_a_preemption(
    cluster: LocalCluster, reference: Reference, assert_empty: AssertEmpty
) -> None:
    expected = expected_of(reference)
    async with cluster.client() as client:
        num_preemptions = 0
        # Once, but for a machine on which few answers meet.
        for _ in range(MAX_ROUNDS):
            answers = await all_at_once(client)
            assert_equal(answers, expected)
            num_preemptions += sum(answer.timings.num_preemptions for answer in answers)
            if num_preemptions:
                break
    assert num_preemptions > 0
    tokens = {
        name: [
            result.token_ids
            for (other, _, _), result in zip(cases(), expected, strict=True)
            if other == name
        ]
        for name in OPTIONS
    }
    assert all(tokens[name] != tokens["plain"] for name in OPTIONS if name != "plain")
    for number, prompt in enumerate(PROMPTS):
        repeats = {name: NUM_OUTPUT - len(set(tokens[name][number])) for name in OPTIONS}
        assert repeats["presence"] <= repeats["plain"] < repeats["frequency"]
        assert set(tokens["repetition"][number]) - set(prompt)
        assert BANNED not in tokens["logit_bias"][number]
        assert tokens["logit_bias"][number].count(WANTED) > tokens["plain"][number].count(WANTED)
    await assert_empty(cluster)


async def test_the_same_after_a_decode_worker_was_killed(
    cluster: LocalCluster, reference: Reference, until: Until, assert_empty: AssertEmpty
) -> None:
    expected = expected_of(reference)
    async with cluster.client() as client:
        wholes = [answer.text for answer in await plain_answers(client)]
        # Seven characters near the end: several tokens, here and there parts of one character.
        stops = [text[-12:-5] for text in wholes]
        # Once, but for a machine that holds this process up until all is over.
        for _ in range(MAX_ROUNDS):
            call = asyncio.gather(plain_answers(client, stops), all_at_once(client))

            async def is_in_the_midst(call: asyncio.Future[Any] = call) -> bool:
                workers = {view.worker_id: view for view in await client.admin.workers()}
                return call.done() or workers["decode-0"].num_running > 0

            await until(is_in_the_midst)
            cluster.process("decode-0").kill()
            cluster.process("decode-0").start()
            cut, answers = await call
            await cluster.wait_ready("decode-0")
            assert_equal(answers, expected)
            num_migrations = sum(each.timings.num_migrations for each in (*cut, *answers))
            if num_migrations:
                break
    # Nothing of a stop string was ever sent: what was sent cannot be taken back.
    texts = [text[: text.index(stop)] for text, stop in zip(wholes, stops, strict=True)]
    assert [answer.text for answer in cut] == texts
    assert [answer.choices[0].matched_stop for answer in cut] == stops
    assert num_migrations > 0
    await assert_empty(cluster)


async def test_logprobs_of_the_prompt_are_those_of_transformers_and_come_first(
    cluster: LocalCluster, model_folders: dict[str, Path]
) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        model_folders["llama"], dtype=torch.float32, attn_implementation="eager"
    )
    async with cluster.client() as client:
        for prompt in PROMPTS:
            events: list[Any] = []
            options: Any = {"max_tokens": 3, "temperature": 0.0, "prompt_logprobs": 2, "n": 2}
            async with client.stream(prompt, **options) as stream:
                async for event in stream:
                    events.append(type(event))
                answer = await stream.completion()
            if len(prompt) == 1:
                assert answer.prompt_logprobs == ()
                continue
            assert PromptLogprobs not in events[events.index(Delta) :]
            assert len(answer.prompt_logprobs) == len(prompt)
            assert answer.prompt_logprobs[0] is None
            found = [entry for entry in answer.prompt_logprobs if entry is not None]
            with torch.inference_mode():
                scores = torch.log_softmax(model(torch.tensor([prompt])).logits[0, :-1], -1)
            wanted = scores.gather(1, torch.tensor(prompt[1:])[:, None]).flatten()
            logprobs = torch.tensor([entry.logprob for entry in found])
            torch.testing.assert_close(logprobs, wanted, rtol=1e-4, atol=1e-4)
            best = scores.topk(2).indices.tolist()
            assert [[top.token_id for top in entry.top] for entry in found] == best


async def test_nothing_ends_an_answer_before_it_has_min_tokens(
    cluster: LocalCluster, reference: Reference
) -> None:
    prompt = PROMPTS[2]
    (free,) = reference([TrialRequest(prompt, NUM_OUTPUT, SamplingParams(temperature=0.0))])
    end = free.token_ids[4]
    async with cluster.client() as client:
        shared: dict[str, Any] = {
            "temperature": 0.0,
            "max_tokens": NUM_OUTPUT,
            "stop_token_ids": [end],
            "ignore_eos": True,
        }
        early = await client.generate(prompt, **shared)
        late = await client.generate(prompt, min_tokens=12, **shared)
        whole = await client.generate(prompt, min_tokens=NUM_OUTPUT, **shared)
    assert list(early.token_ids) == free.token_ids[: free.token_ids.index(end) + 1]
    assert end not in late.token_ids[:12]
    assert len(late.token_ids) > 12
    assert (len(whole.token_ids), str(whole.finish_reason)) == (NUM_OUTPUT, "length")
    assert end not in whole.token_ids
    sampling = SamplingParams(temperature=0.0, min_tokens=12, end_token_ids=(end,))
    (expected,) = reference([TrialRequest(prompt, NUM_OUTPUT, sampling)])
    assert list(late.token_ids) == expected.token_ids[: len(late.token_ids)]


async def test_several_answers_have_penalties_and_logprobs_of_their_own(
    cluster: LocalCluster, reference: Reference
) -> None:
    options = OPTIONS["all"]
    async with cluster.client() as client:
        answer = await client.generate(
            PROMPTS[1], n=3, seed=50, logprobs=3, max_tokens=NUM_OUTPUT, ignore_eos=True, **options
        )
    expected = reference(
        [TrialRequest(PROMPTS[1], NUM_OUTPUT, params_of(options, 50 + index)) for index in range(3)]
    )
    for choice, result in zip(answer.choices, expected, strict=True):
        assert list(choice.token_ids) == result.token_ids
        found = [entry.logprob for entry in choice.logprobs]
        assert found == [entry.logprob for entry in result.logprobs if entry]


async def test_what_no_model_can_do_is_refused_with_a_way_out(cluster: LocalCluster) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"logit_bias": {320: 1.0}}, "logit_bias: id 320 is not in the vocabulary; use 0 to 319"),
        ({"min_p": float("nan")}, "min_p: nan is out of range; use 0 to 1"),
        ({"frequency_penalty": float("inf")}, "use -2 to 2"),
        ({"min_tokens": 600}, "ask for at most"),
        ({"min_tokens": 5, "max_tokens": 4}, "raise that or lower this"),
    ]
    async with cluster.client() as client:
        for options, message in bad:
            with pytest.raises(Exception, match=message) as caught:
                await client.generate(PROMPTS[1], **options)
            assert isinstance(caught.value, InvalidRequest) or "min_tokens" in options
