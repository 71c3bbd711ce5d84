"""Turns the corpus into an endless, reproducible stream of training batches."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from engine.bundled.corpus import Corpus
from engine.bundled.vocabulary import ASSISTANT, BOS, END, SPECIAL_TOKENS, USER

# Passages of one file stay together up to about this many tokens, so that long rows have a theme.
_TOKENS_PER_RUN = 1500
_MAX_TURNS = 3
CHAT_PASSAGE_FRACTION = 0.03
_BOS, _END, _USER, _ASSISTANT = (SPECIAL_TOKENS.index(t) for t in (BOS, END, USER, ASSISTANT))


@dataclass(frozen=True, slots=True)
class EncodedExchange:
    """Token ids of the wordings of a question, and of its answer."""

    questions: tuple[tuple[int, ...], ...]
    answer: tuple[int, ...]
    weight: float


@dataclass(frozen=True, slots=True)
class EncodedCorpus:
    """Token ids without special tokens; these are added where documents are joined."""

    passages: tuple[tuple[int, ...], ...]
    exchanges: tuple[EncodedExchange, ...]
    # The share of the passages, drawn anew, that one pass contains.
    passage_fraction: float = 1.0


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Rows of a batch and tokens predicted per row."""

    num_rows: int
    length: int

    @property
    def num_tokens(self) -> int:
        return self.num_rows * self.length


def chat_corpus(corpus: EncodedCorpus, min_weight: float) -> EncodedCorpus:
    """The questions asked most, once each, between a few passages that keep the prose alive."""
    asked = [each for each in corpus.exchanges if each.weight >= min_weight]
    once = tuple(EncodedExchange(each.questions, each.answer, 1.0) for each in asked)
    return EncodedCorpus(corpus.passages, once, passage_fraction=CHAT_PASSAGE_FRACTION)


def encode_corpus(corpus: Corpus, tokenizer: Tokenizer) -> EncodedCorpus:
    """Encode every text once."""

    def encode(texts: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return tuple(tuple(each.ids) for each in encodings)

    answers = encode(tuple(each.answer for each in corpus.exchanges))
    return EncodedCorpus(
        encode(corpus.passages),
        tuple(
            EncodedExchange(encode(each.questions), answer, each.weight)
            for each, answer in zip(corpus.exchanges, answers, strict=True)
        ),
    )


def passage_tokens(passage: tuple[int, ...]) -> list[int]:
    """A passage as the model sees it: begun and ended."""
    return [_BOS, *passage, _END]


def conversation_tokens(turns: list[EncodedExchange], rng: random.Random) -> list[int]:
    """Turns of one chat, as the chat template writes them; a wording is drawn for each."""
    tokens = [_BOS]
    for turn in turns:
        question = rng.choice(turn.questions)
        tokens += [_USER, *question, _ASSISTANT, *turn.answer, _END]
    return tokens


def epoch_tokens(corpus: EncodedCorpus, rng: random.Random) -> list[int]:
    """One pass over the corpus in a fresh order, as one list of token ids."""
    units: list[list[int]] = []
    run: list[int] = []
    for passage in corpus.passages:
        if corpus.passage_fraction < 1 and rng.random() >= corpus.passage_fraction:
            continue
        run += passage_tokens(passage)
        if len(run) >= _TOKENS_PER_RUN:
            units.append(run)
            run = []
    units.append(run)
    shown: list[EncodedExchange] = []
    for exchange in corpus.exchanges:
        whole = int(exchange.weight)
        shown += [exchange] * (whole + (rng.random() < exchange.weight - whole))
    rng.shuffle(shown)
    while shown:
        num_turns = rng.randint(1, _MAX_TURNS)
        units.append(conversation_tokens(shown[:num_turns], rng))
        del shown[:num_turns]
    rng.shuffle(units)
    return [token for unit in units for token in unit]


class TokenStream:
    """Batches of any shape from pass after pass; the same seed gives the same batches."""

    def __init__(self, corpus: EncodedCorpus, seed: int) -> None:
        self._epochs = self._run_epochs(corpus, random.Random(seed))
        self._tokens = np.empty(0, dtype=np.int64)
        self._start = 0
        self.num_epochs_begun = 0

    def _run_epochs(self, corpus: EncodedCorpus, rng: random.Random) -> Iterator[list[int]]:
        while True:
            yield epoch_tokens(corpus, rng)

    def next_batch(self, shape: BatchShape) -> Tensor:
        """Rows with one token more than they predict. Shape: [num_rows, length + 1] int64."""
        needed = shape.num_tokens + 1
        while len(self._tokens) - self._start < needed:
            fresh = np.asarray(next(self._epochs), dtype=np.int64)
            self._tokens = np.concatenate((self._tokens[self._start :], fresh))
            self._start = 0
            self.num_epochs_begun += 1
        flat = torch.from_numpy(self._tokens[self._start : self._start + needed])
        self._start += shape.num_tokens
        return flat.unfold(0, shape.length + 1, shape.length).contiguous()
