"""What is asked: prompts of random tokens, all different, and answers of given lengths."""

import csv
import gzip
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# The peers run with a context of 1,024 tokens.
MAX_TOKENS = 1000
FIXED_PROMPT, FIXED_ANSWER = 256, 64
# ShareGPT's conversations are some thousand tokens long; an eighth fits the context here.
_SCALE = 8
_MIN_PROMPT, _MIN_ANSWER = 8, 4


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: its prompt, and how many tokens the answer has (end tokens are ignored)."""

    prompt: tuple[int, ...]
    num_output: int


@dataclass(frozen=True, slots=True)
class Load:
    """So many clients, each with one request at a time, until all are answered."""

    num_clients: int
    asks: tuple[Ask, ...]

    @property
    def num_output_tokens(self) -> int:
        return sum(ask.num_output for ask in self.asks)


def requests_for(num_clients: int, is_quick: bool) -> int:
    """Requests of a load: several rounds of all clients, more where a round is short."""
    rounds = 2 if num_clients >= 16 else 4 if num_clients > 1 else 6
    return num_clients * (max(1, rounds // 2) if is_quick else rounds)


def fixed_lengths(count: int) -> list[tuple[int, int]]:
    """(prompt, answer) tokens, all alike."""
    return [(FIXED_PROMPT, FIXED_ANSWER)] * count


def table_lengths(
    path: Path,
    count: int,
    rng: random.Random,
    scale: int = _SCALE,
    max_tokens: int = MAX_TOKENS,
) -> list[tuple[int, int]]:
    """(prompt, answer) tokens drawn from a table with the columns prompt_tokens, output_tokens,
    each divided by `scale`, together at most `max_tokens`."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        rows = [(int(r["prompt_tokens"]), int(r["output_tokens"])) for r in csv.DictReader(file)]
    lengths = []
    for prompt, answer in rng.choices(rows, k=count):
        num_output = min(max(_MIN_ANSWER, answer // scale), max_tokens - _MIN_PROMPT)
        num_prompt = min(max(_MIN_PROMPT, prompt // scale), max_tokens - num_output)
        lengths.append((num_prompt, num_output))
    return lengths


def make_load(
    num_clients: int, lengths: Sequence[tuple[int, int]], vocab_size: int, rng: random.Random
) -> Load:
    """Random prompts: no two share a prefix, so nobody's prefix cache helps."""
    asks = tuple(
        Ask(tuple(rng.randrange(3, vocab_size) for _ in range(num_prompt)), num_output)
        for num_prompt, num_output in lengths
    )
    return Load(num_clients, asks)
