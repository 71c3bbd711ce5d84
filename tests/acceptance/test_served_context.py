"""The context that is served, through the cluster: stretched, and short ones of long models."""

import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from deploy.local.child import ChildProcess
from deploy.local.cluster import LocalCluster
from engine.testing import family_fields, make_random_model_folder
from tandemserve import ContextTooLong

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
ExtraWorker = Callable[..., AbstractAsyncContextManager[ChildProcess]]
Until = Callable[..., Awaitable[float]]
Tokens = tuple[int, ...]

TRAINED = 64
NUM_OUTPUT = 24
LONG = {
    "type": "longrope",
    "short_factor": [1.0, 1.1, 1.3, 1.6, 2.0, 2.5],
    "long_factor": [1.0, 1.5, 2.5, 5.0, 9.0, 16.0],
}


def prompts(*lengths: int) -> list[Tokens]:
    rng = random.Random(31)
    return [tuple(rng.choices(range(3, 320), k=length)) for length in lengths]


def likeliest(folder: Path, prompt: Tokens) -> Tokens:
    """What transformers' generate answers, past end tokens."""
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NUM_OUTPUT,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    return tuple(output[0, len(prompt) :].tolist())


async def test_a_prompt_beyond_the_trained_length_is_answered_as_by_transformers(
    start_cluster: StartCluster, tmp_path: Path
) -> None:
    folder = tmp_path / "linear"
    scaling = {"type": "linear", "factor": 4.0}
    fields = family_fields("llama", max_position_embeddings=TRAINED, rope_scaling=scaling)
    make_random_model_folder(folder, fields=fields)
    short, long, too_long = prompts(20, 4 * TRAINED - NUM_OUTPUT, 4 * TRAINED)
    expected = {prompt: likeliest(folder, prompt) for prompt in (short, long)}
    async with start_cluster(folder, num_decode=1) as cluster, cluster.client() as client:
        assert (await client.model_info()).context_length == 4 * TRAINED
        for prompt in (short, long):
            answer = await client.generate(
                prompt, max_tokens=NUM_OUTPUT, temperature=0.0, ignore_eos=True
            )
            assert answer.token_ids == expected[prompt]
        with pytest.raises(ContextTooLong):
            await client.generate(too_long, max_tokens=1)


async def test_all_processes_must_rotate_for_the_same_context(
    start_cluster: StartCluster, extra_worker: ExtraWorker, until: Until, tmp_path: Path
) -> None:
    folder = tmp_path / "phi3"
    fields = family_fields("phi3", rope_scaling=LONG, original_max_position_embeddings=TRAINED)
    make_random_model_folder(folder, fields=fields)
    told = {"max_model_len": str(TRAINED)}
    (prompt,) = prompts(TRAINED - NUM_OUTPUT)
    async with (
        start_cluster(folder, num_decode=1, router=told, prefill=told, decode=told) as cluster,
        extra_worker(cluster, "decode_worker", folder, "stranger"),
        cluster.client() as client,
    ):

        async def is_refused() -> bool:
            views = {view.worker_id: view for view in await client.admin.workers()}
            stranger = views.get("stranger")
            return stranger is not None and stranger.state == "incompatible"

        await until(is_refused)
        views = {view.worker_id: view for view in await client.admin.workers()}
        assert "--max-model-len" in views["stranger"].problem
        answer = await client.generate(
            prompt, max_tokens=NUM_OUTPUT, temperature=0.0, ignore_eos=True
        )
    # The short factors, which transformers takes for so short a sequence.
    assert answer.token_ids == likeliest(folder, prompt)
