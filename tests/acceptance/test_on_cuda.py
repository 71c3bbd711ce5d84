"""Workers that share one GPU serve the model's own tokens; KV goes from one to the other by IPC."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import torch

from deploy.local.cluster import LocalCluster

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
Prompt = tuple[int, ...]
Greedy = Callable[[str, Sequence[Prompt], int], list[tuple[int, ...]]]
AssertEmpty = Callable[..., Awaitable[float]]

NUM_OUTPUT, SEED = 24, 29
LENGTHS = (1, 15, 16, 33, 64, 97)
# Heads of the small model are smaller than FlashInfer's. Room is given: it is not what is tested.
ON_GPU = {"device": "cuda", "dtype": "float32", "attention": "torch", "num_blocks": "64"}
SHARED = {"max_tokens": NUM_OUTPUT, "ignore_eos": True, "timeout_s": 120.0}


@pytest.mark.parametrize(
    ("workers", "more"),
    [
        ({"num_prefill": 1, "num_decode": 1}, {}),
        (
            {"num_prefill": 0, "num_decode": 0, "num_mixed": 1},
            {"num_blocks": "14", "preemption": "swap"},
        ),
    ],
    ids=["pair", "mixed, swapping"],
)
async def test_workers_on_one_gpu_serve_the_models_own_tokens(
    workers: dict[str, int],
    more: dict[str, str],
    start_cluster: StartCluster,
    greedy: Greedy,
    model_folders: dict[str, Path],
    assert_empty: AssertEmpty,
) -> None:
    print(f"prompts: seed {SEED}")
    rng = random.Random(SEED)
    wanted = [tuple(rng.choices(range(3, 300), k=n)) for n in LENGTHS]
    settings = {"prefill": ON_GPU, "decode": {**ON_GPU, **more}}
    async with (
        start_cluster(
            model_folders["qwen2"], router={"policy": "fcfs"}, **workers, **settings
        ) as cluster,
        cluster.client() as client,
    ):
        calls = [client.generate(p, temperature=0.0, **SHARED) for p in wanted]  # type: ignore[arg-type]
        answers = await asyncio.gather(*calls)
        assert [a.token_ids for a in answers] == greedy("qwen2", wanted, NUM_OUTPUT)
        if "num_mixed" in workers:
            assert sum(a.timings.num_preemptions for a in answers) > 0
        else:
            assert {a.timings.transport for a in answers} == {"cuda_ipc"}
        await assert_empty(cluster)
