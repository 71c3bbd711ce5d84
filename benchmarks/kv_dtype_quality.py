"""What KV in fewer bits costs in quality: the bundled model reads and writes over each dtype.

    python -m benchmarks.kv_dtype_quality [--dtype bfloat16] [--text FILE ...]

Perplexity of a text, read in pieces of --tokens tokens; at how many of its tokens the likeliest
next one is that of the exact KV (float32); and how far the logprobs of the text's own tokens are
off. Then greedy answers to the prompts of the demo: tokens until the first that differs.
"""

import argparse
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from engine.attention.choice import AttentionShape, choose_attention
from engine.bundled import bundled_model_path
from engine.bundled.prompts import DEMO_PROMPTS
from engine.kv_dtype import KV_DTYPES
from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.testing import TrialRequest, run_together
from scheduling.sampling import SamplingParams

BLOCK_SIZE, NUM_BLOCKS, NUM_OUTPUT = 16, 512, 96
READING = SamplingParams(temperature=0.0, num_prompt_logprobs=1)
# As what the model was trained on.
DOCUMENTED = ("difflib", "statistics", "subprocess", "argparse", "heapq", "datetime", "optparse")


@dataclass(frozen=True, slots=True)
class Reading:
    """Of every token of a text but the first of each piece."""

    logprobs: tuple[float, ...]
    likeliest: tuple[int, ...]

    @property
    def perplexity(self) -> float:
        return math.exp(-sum(self.logprobs) / len(self.logprobs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16", help="of the weights")
    parser.add_argument("--text", type=Path, action="append", help="default: docstrings of Python")
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--max-tokens", type=int, default=20_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(bundled_model_path(), args.dtype)
    tokenizer = Tokenizer.from_file(str(bundled_model_path() / "tokenizer.json"))
    texts = {str(path): path.read_text("utf-8") for path in args.text or ()}
    for name, text in (texts or {"docstrings": _docstrings()}).items():
        ids = tokenizer.encode(text, add_special_tokens=False).ids[: args.max_tokens]
        print(f"{name}: {len(ids)} tokens in pieces of {args.tokens}, weights in {args.dtype}")
        pieces = [tuple(ids[i : i + args.tokens]) for i in range(0, len(ids), args.tokens)]
        readings = {kv_dtype: _read(model, kv_dtype, pieces) for kv_dtype in KV_DTYPES}
        for kv_dtype, reading in readings.items():
            _print(kv_dtype, reading, readings["float32"])
    prompts = [tuple(tokenizer.encode(prompt.text).ids) for prompt in DEMO_PROMPTS]
    answers = {kv_dtype: _answers(model, kv_dtype, prompts) for kv_dtype in KV_DTYPES}
    for kv_dtype, tokens in answers.items():
        same = [_num_same(*pair) for pair in zip(tokens, answers["float32"], strict=True)]
        print(f"{kv_dtype:10} greedy tokens before the first that differs, of {NUM_OUTPUT}: {same}")


def _docstrings() -> str:
    return "\n\n".join(importlib.import_module(name).__doc__ or "" for name in DOCUMENTED)


def _runner(model: Decoder, kv_dtype: str) -> ModelRunner:
    shape = model.config
    layout = KvLayout(shape.num_layers, shape.num_kv_heads, shape.head_dim, BLOCK_SIZE, kv_dtype)
    attention = choose_attention(
        AttentionShape(layout, shape.num_heads, shape.layer_attention, model.device, model.dtype),
        "torch",
    )
    return ModelRunner(model, KvPool(layout, NUM_BLOCKS), len(DEMO_PROMPTS), attention)


def _read(model: Decoder, kv_dtype: str, pieces: Sequence[tuple[int, ...]]) -> Reading:
    logprobs: list[float] = []
    likeliest: list[int] = []
    for piece in pieces:
        request = TrialRequest(piece, 1, READING)
        (result,) = run_together(_runner(model, kv_dtype), [request], BLOCK_SIZE, NUM_BLOCKS)
        for part in result.prompt_logprobs:
            logprobs += part.logprobs
            likeliest += part.top_token_ids
    return Reading(tuple(logprobs), tuple(likeliest))


def _print(kv_dtype: str, reading: Reading, exact: Reading) -> None:
    pairs = zip(reading.likeliest, exact.likeliest, strict=True)
    same = sum(mine == theirs for mine, theirs in pairs) / len(exact.likeliest)
    off = [abs(a - b) for a, b in zip(reading.logprobs, exact.logprobs, strict=True)]
    print(
        f"{kv_dtype:10} perplexity {reading.perplexity:8.4f}, the likeliest token the same at "
        f"{same:.2%}, logprobs {sum(off) / len(off):.4f} off in the mean, {max(off):.3f} at most"
    )


def _answers(model: Decoder, kv_dtype: str, prompts: Sequence[tuple[int, ...]]) -> list[list[int]]:
    requests = [TrialRequest(prompt, NUM_OUTPUT) for prompt in prompts]
    results = run_together(_runner(model, kv_dtype), requests, BLOCK_SIZE, NUM_BLOCKS)
    return [result.token_ids for result in results]


def _num_same(tokens: Sequence[int], exact: Sequence[int]) -> int:
    pairs = enumerate(zip(tokens, exact, strict=True))
    return next((index for index, (a, b) in pairs if a != b), len(exact))


if __name__ == "__main__":
    main()
