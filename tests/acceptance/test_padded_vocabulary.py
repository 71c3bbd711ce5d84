"""A model with more rows than its tokenizer has tokens, through the cluster."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from deploy.local.cluster import LocalCluster
from engine.testing import family_fields, make_random_model_folder
from engine.tokenizer import Tokenizer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]

VOCAB_SIZE = 1000
PADDED = VOCAB_SIZE - 1
NUM_OUTPUT = 24


async def test_padded_ids_are_tokens_without_text(
    start_cluster: StartCluster, tmp_path: Path
) -> None:
    folder = tmp_path / "padded"
    make_random_model_folder(folder, fields=family_fields("llama", vocab_size=VOCAB_SIZE))
    tokenizer = Tokenizer.from_folder(folder)
    async with start_cluster(folder, num_decode=1) as cluster, cluster.client() as client:
        answer = await client.generate(
            [5, 6, PADDED], max_tokens=NUM_OUTPUT, temperature=0.0, logprobs=20, ignore_eos=True
        )
        assert len(answer.token_ids) == NUM_OUTPUT
        assert max(answer.token_ids) >= tokenizer.vocab_size, "the test shows nothing"
        known = [token_id for token_id in answer.token_ids if token_id < tokenizer.vocab_size]
        assert answer.text == tokenizer.decode(known)
        # What nothing but padded ids is made of, is as long as it was asked to be, and empty.
        forced = await client.generate(
            [5], max_tokens=9, temperature=0.0, logit_bias={PADDED: 100.0}, stop=["x"]
        )
        assert (list(forced.token_ids), forced.text) == ([PADDED] * 9, "")
