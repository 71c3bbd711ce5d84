"""Prefill and decode workers over KV in fewer bits: the tokens of one engine with such KV."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import torch

from deploy.local.cluster import LocalCluster
from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_runner import ModelRunner
from engine.testing import TrialRequest, run_together

pytestmark = [pytest.mark.asyncio, pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
AssertEmpty = Callable[..., Awaitable[float]]

NUM_OUTPUT, SEED = 24, 37
BLOCK_SIZE, NUM_BLOCKS = 16, 256
LENGTHS = (1, 16, 33, 97, 130)


@pytest.mark.parametrize(
    ("dtype", "kv_dtype", "settings"),
    [
        ("float32", "fp8_e4m3", {"transports": "shared_memory"}),
        ("float16", "fp8_e4m3", {"transports": "tcp"}),
        ("float16", "auto", {"transports": "shared_memory"}),
    ],
)
async def test_a_pair_of_workers_gives_the_tokens_of_one_engine_with_the_same_kv(
    start_cluster: StartCluster,
    model_folders: dict[str, Path],
    assert_empty: AssertEmpty,
    dtype: str,
    kv_dtype: str,
    settings: dict[str, str],
) -> None:
    print(f"prompts: seed {SEED}")
    rng = random.Random(SEED)
    prompts = [tuple(rng.choices(range(3, 300), k=n)) for n in LENGTHS]
    shared = settings | {"dtype": dtype, "kv_dtype": kv_dtype, "kv_checksum_fraction": "1"}
    async with (
        start_cluster(
            model_folders["llama"],
            num_decode=1,
            # So few blocks that answers make room for each other, and their KV is swapped.
            prefill=shared,
            decode=shared | {"num_blocks": "14"},
        ) as cluster,
        cluster.client() as client,
    ):
        answers = await asyncio.gather(
            *(
                client.generate(
                    prompt, temperature=0.0, max_tokens=NUM_OUTPUT, ignore_eos=True, timeout_s=240.0
                )
                for prompt in prompts
            )
        )
        assert {answer.timings.prefill_worker for answer in answers} == {"prefill-0"}
        assert {answer.timings.decode_worker for answer in answers} == {"decode-0"}
        await assert_empty(cluster)
    torch.set_num_threads(1)
    model = load_model(model_folders["llama"], dtype)
    shape, name = model.config, dtype if kv_dtype == "auto" else kv_dtype
    layout = KvLayout(shape.num_layers, shape.num_kv_heads, shape.head_dim, BLOCK_SIZE, name)
    runner = ModelRunner(model, KvPool(layout, NUM_BLOCKS), len(prompts))
    requests = [TrialRequest(prompt, NUM_OUTPUT) for prompt in prompts]
    expected = run_together(runner, requests, BLOCK_SIZE, NUM_BLOCKS)
    assert [list(answer.token_ids) for answer in answers] == [
        result.token_ids for result in expected
    ]
