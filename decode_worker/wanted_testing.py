"""Sequences whose right answers are known: a token is a function of the history, as is its KV."""

from dataclasses import dataclass
from typing import Final

from engine.fake_runner import fake_next_token
from scheduling.block_pool import num_blocks_for

VOCAB_SIZE: Final = 300
BLOCK_SIZE: Final = 4
# One token in so many ends an answer.
STOPS_EVERY: Final = 12
STOPS: Final = tuple(range(0, VOCAB_SIZE, STOPS_EVERY))


@dataclass(frozen=True, slots=True)
class Wanted:
    """A sequence: a prompt of its own, and when it ends at the latest."""

    first_token: int
    num_prompt: int
    max_tokens: int

    @property
    def prompt(self) -> tuple[int, ...]:
        return tuple((self.first_token + 3 * i) % VOCAB_SIZE for i in range(self.num_prompt))

    @property
    def answer(self) -> tuple[int, ...]:
        """What it has to be."""
        output: list[int] = []
        while len(output) < self.max_tokens and not (output and output[-1] in STOPS):
            output.append(fake_next_token((*self.prompt, *output), VOCAB_SIZE))
        return tuple(output)

    @property
    def most_blocks(self) -> int:
        return num_blocks_for(self.num_prompt + self.max_tokens, BLOCK_SIZE)


@dataclass(slots=True)
class Try:
    """One task of a sequence, as the router knows it."""

    wanted: Wanted
    output: list[int]
    is_over: bool = False
    # Of a cancel, a failure or a lost session: no other try follows.
    is_given_up: bool = False
