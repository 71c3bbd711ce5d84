"""Logprobs in bounded pieces, and alternatives in one order whatever ties."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from engine.logprobs import PromptScorer, top_tokens
from scheduling.sampling import PromptLogprobs

VOCAB, HIDDEN = 60, 8


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(
        st.lists(
            st.sampled_from([0.0, -0.0, -1.5, -1.0, 2.0, 3.4e38, -3.4e38, -1e-40]),
            min_size=6,
            max_size=6,
        ),
        min_size=1,
        max_size=3,
    ),
    num_top=st.integers(0, 8),
)
def test_the_top_tokens_are_those_of_a_stable_sort(rows: list[list[float]], num_top: int) -> None:
    scores = torch.tensor(rows, dtype=torch.float32)
    values, ids = torch.sort(scores, dim=-1, descending=True, stable=True)
    top_ids, top_scores = top_tokens(scores, num_top)
    assert top_ids.tolist() == ids[:, :num_top].tolist()
    assert top_scores.tolist() == values[:, :num_top].tolist()


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(HIDDEN, VOCAB, generator=torch.Generator().manual_seed(1))


def score(
    weight: Tensor, hidden: Tensor, token_ids: Tensor, num_top: int
) -> tuple[PromptLogprobs, ...]:
    scorer = PromptScorer(lambda states: states @ weight, VOCAB, max_logits=4 * VOCAB)
    pieces = scorer.score(hidden, token_ids, 5, num_top)
    assert pieces is not None
    return pieces


@pytest.mark.parametrize("num_top", [0, 3, VOCAB + 5])
def test_prompt_tokens_are_scored_in_pieces_of_bounded_size(weight: Tensor, num_top: int) -> None:
    hidden = torch.randn(10, HIDDEN, generator=torch.Generator().manual_seed(2))
    token_ids = torch.arange(10) * 5
    pieces = score(weight, hidden, token_ids, num_top)
    assert [(p.first_token_index, p.num_tokens) for p in pieces] == [(5, 4), (9, 4), (13, 2)]
    expected = torch.log_softmax(hidden @ weight, -1)
    found = [value for piece in pieces for value in piece.logprobs]
    wanted = expected.gather(1, token_ids[:, None]).flatten().tolist()
    assert found == pytest.approx(wanted, abs=1e-5)
    best = expected.topk(min(num_top, VOCAB)).indices.flatten().tolist()
    assert [token_id for piece in pieces for token_id in piece.top_token_ids] == best
    assert {piece.num_top for piece in pieces} == {min(num_top, VOCAB)}


def test_logits_that_are_not_numbers_are_told(weight: Tensor) -> None:
    hidden = torch.zeros(3, HIDDEN)
    hidden[1, 2] = float("nan")
    scorer = PromptScorer(lambda states: states @ weight, VOCAB)
    assert scorer.score(hidden, torch.tensor([1, 2, 3]), 1, 0) is None


def test_an_impossible_token_has_a_logprob_that_is_a_number() -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 7] = -torch.inf
    pieces = PromptScorer(lambda states: logits, VOCAB).score(
        torch.zeros(1, HIDDEN), torch.tensor([7]), 1, 0
    )
    assert pieces is not None
    assert pieces[0].logprobs[0] == pytest.approx(torch.finfo(torch.float32).min)


@given(first=st.integers(1, 9), num_tokens=st.integers(1, 6), start=st.integers(0, 20))
def test_a_piece_can_begin_later(first: int, num_tokens: int, start: int) -> None:
    hidden, ids = torch.randn(num_tokens, HIDDEN), torch.arange(num_tokens)
    scorer = PromptScorer(lambda states: states @ torch.eye(HIDDEN), HIDDEN)
    pieces = scorer.score(hidden, ids, first, 2)
    assert pieces is not None
    (piece,) = pieces
    rest = piece.starting_at(start)
    kept = range(max(first, min(start, first + num_tokens)), first + num_tokens)
    assert (rest.first_token_index, rest.num_tokens) == (kept.start, len(kept))
    assert rest.end_token_index == piece.end_token_index
    assert list(rest.logprobs) == [piece.logprobs[position - first] for position in kept]
    assert len(rest.top_token_ids) == len(rest.top_logprobs) == 2 * len(kept)
    tail = piece.top_token_ids[2 * (num_tokens - len(kept)) :]
    assert rest.top_token_ids == tail
