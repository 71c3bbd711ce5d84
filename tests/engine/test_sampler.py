from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from engine.logprobs import NO_LOGPROBS
from engine.sampler import SampledBatch, SamplingBatch, kept_tokens, sample
from scheduling.sampling import SamplingParams

VOCAB = 50
GREEDY = SamplingParams(temperature=0.0)


def batch_of(params: Sequence[SamplingParams], indices: Sequence[int]) -> SamplingBatch:
    return SamplingBatch(
        temperature=np.array([p.temperature for p in params], np.float64),
        top_k=np.array([p.top_k for p in params], np.int64),
        top_p=np.array([p.top_p for p in params], np.float64),
        min_p=np.array([p.min_p for p in params], np.float64),
        seed=np.array([p.seed for p in params], np.uint64),
        output_index=np.array(indices, np.uint64),
        num_logprobs=np.array(
            [NO_LOGPROBS if p.num_logprobs is None else p.num_logprobs for p in params], np.int64
        ),
    )


def draw(
    logits: Tensor, params: Sequence[SamplingParams], indices: Sequence[int] | None = None
) -> SampledBatch:
    return sample(logits, batch_of(params, indices or [0] * len(params)))


def random_logits(rows: int, seed: int = 0) -> Tensor:
    return 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def params_strategy() -> st.SearchStrategy[SamplingParams]:
    return st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 1e-6, 0.5, 1.0, 3.0, 1e6]),
        top_k=st.sampled_from([0, 1, 5, VOCAB, 10**6]),
        top_p=st.sampled_from([1e-9, 0.3, 0.9, 1.0]),
        min_p=st.sampled_from([0.0, 0.2, 1.0]),
        seed=st.integers(0, 2**64 - 1),
        num_logprobs=st.sampled_from([None, 0, 3]),
    )


def test_greedy_takes_the_lowest_id_of_equally_likely_tokens() -> None:
    logits = torch.zeros(2, VOCAB)
    logits[0, [7, 30, 49]] = 5.0
    assert draw(logits, [GREEDY, GREEDY]).token_ids.tolist() == [7, 0]


@settings(max_examples=60, deadline=None)
@given(params=st.lists(params_strategy(), min_size=2, max_size=9), seed=st.integers(0, 99))
def test_a_row_draws_the_same_alone_and_in_a_batch(params: list[SamplingParams], seed: int) -> None:
    torch.set_num_threads(1)
    logits = random_logits(len(params), seed)
    indices = list(range(3, 3 + len(params)))
    together = draw(logits, params, indices)
    for row, own in enumerate(params):
        alone = draw(logits[row : row + 1], [own], [indices[row]])
        assert alone.token_ids[0] == together.token_ids[row]
        if own.num_logprobs is not None:
            assert alone.logprobs[0] == together.logprobs[row]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 17, VOCAB]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 1e-6, 0.05, 0.5, 1.0]),
)
@example(seed=3, temperature=0.3, top_k=0, top_p=1.0, min_p=0.0)
def test_the_kept_set_is_that_of_the_transformers_warpers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    logits = random_logits(1, seed).double()
    no_ids = torch.zeros(1, 1, dtype=torch.long)
    warped = TemperatureLogitsWarper(temperature)(no_ids, logits)
    # transformers itself has min_p last; the order is vLLM's.
    if min_p:
        warped = MinPLogitsWarper(min_p)(no_ids, warped)
    if top_k:
        warped = TopKLogitsWarper(top_k)(no_ids, warped)
    if top_p < 1.0:
        warped = TopPLogitsWarper(top_p)(no_ids, warped)
    expected = set(torch.isfinite(warped[0]).nonzero().flatten().tolist())
    scaled = (logits - logits.amax()) / temperature
    cut_p, cut_min = torch.tensor([[[top_p]], [[min_p]]], dtype=torch.float64)
    order, weights = kept_tokens(scaled, torch.tensor([[top_k]]), cut_p, cut_min)
    assert set(order[0][weights[0] > 0].tolist()) == expected
    probabilities = weights[0] / weights[0].sum()
    torch.testing.assert_close(probabilities, torch.softmax(warped, -1)[0][order[0]])


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=1.0, seed=5),
        SamplingParams(temperature=0.7, top_k=8, seed=6),
        SamplingParams(temperature=1.3, top_p=0.8, seed=7),
        SamplingParams(temperature=1.5, min_p=0.2, seed=8),
        SamplingParams(temperature=2.0, min_p=0.1, top_p=0.95, top_k=30, seed=9),
    ],
)
def test_drawn_tokens_follow_the_distribution(params: SamplingParams) -> None:
    torch.set_num_threads(1)
    num_draws = 20_000
    logits = random_logits(1) / 3
    drawn = draw(
        logits.expand(num_draws, -1), [params] * num_draws, indices=range(num_draws)
    ).token_ids
    scaled = ((logits - logits.amax()) / params.temperature).double()
    cut_p, cut_min = torch.tensor([[[params.top_p]], [[params.min_p]]], dtype=torch.float64)
    order, weights = kept_tokens(scaled, torch.tensor([[params.top_k]]), cut_p, cut_min)
    probabilities = np.zeros(VOCAB)
    probabilities[order[0].numpy()] = (weights[0] / weights[0].sum()).numpy()
    counts = np.bincount(drawn, minlength=VOCAB)
    assert not counts[probabilities == 0].any()
    expected = probabilities * num_draws
    is_common = expected >= 5
    chi_square = ((counts - expected)[is_common] ** 2 / expected[is_common]).sum()
    degrees = is_common.sum() - 1
    assert degrees >= 5
    # Mean plus five standard deviations; the seeds are fixed, so this never flickers.
    assert chi_square < degrees + 5 * np.sqrt(2 * degrees)


def test_top_p_keeps_at_least_the_likeliest_token() -> None:
    logits = random_logits(4)
    params = [SamplingParams(top_p=1e-12, seed=seed) for seed in range(4)]
    assert draw(logits, params).token_ids.tolist() == logits.argmax(-1).tolist()


def test_the_index_moves_the_stream_on_and_the_seed_selects_it() -> None:
    logits = torch.zeros(40, VOCAB)
    by_index = draw(logits, [SamplingParams(seed=1)] * 40, indices=range(40)).token_ids
    by_seed = draw(logits, [SamplingParams(seed=seed) for seed in range(40)]).token_ids
    assert len(set(by_index.tolist())) > 20
    assert len(set(by_seed.tolist())) > 20


def test_logprobs_are_those_of_the_raw_logits() -> None:
    logits = random_logits(3)
    params = [
        SamplingParams(temperature=0.0, num_logprobs=2),
        SamplingParams(temperature=0.5, top_k=1, seed=1),
        SamplingParams(temperature=2.0, num_logprobs=0, seed=2),
    ]
    result = draw(logits, params)
    expected = torch.log_softmax(logits, -1)
    first, second, third = result.logprobs
    assert first is not None
    assert third is not None
    assert second is None
    assert first.logprob == pytest.approx(expected[0].max().item())
    best = expected[0].topk(2)
    assert [token for token, _ in first.top] == best.indices.tolist()
    assert [value for _, value in first.top] == pytest.approx(best.values.tolist())
    assert third.top == ()
    assert third.logprob == pytest.approx(expected[2, result.token_ids[2]].item())


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_rows_that_are_not_numbers_are_marked_and_the_others_unharmed(broken: float) -> None:
    logits = random_logits(3)
    logits[1, 4] = broken
    params = [SamplingParams(seed=9), SamplingParams(seed=9), SamplingParams(top_k=3, seed=9)]
    result = draw(logits, params)
    assert result.is_finite.tolist() == [True, False, True]
    clean = draw(random_logits(3), params)
    assert result.token_ids[[0, 2]].tolist() == clean.token_ids[[0, 2]].tolist()


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.zeros(500, VOCAB)
    logits[:, 10:] = -torch.inf
    for params in (SamplingParams(seed=3), SamplingParams(seed=3, top_p=0.99)):
        drawn = draw(logits, [params] * 500, indices=range(500)).token_ids
        assert drawn.max() < 10


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_of_a_large_vocabulary_is_cut_the_same_alone_and_among_others(
    num_threads: int,
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        scaled = torch.randn(5, 50_257, generator=torch.Generator().manual_seed(3)).double()
        scaled.sub_(scaled.amax(-1, keepdim=True))
        cuts = (torch.zeros(5, 1, dtype=torch.int64), torch.full((5, 1), 0.9).double())
        _, together = kept_tokens(scaled, *cuts)
        for row in range(5):
            one = slice(row, row + 1)
            _, alone = kept_tokens(scaled[one], cuts[0][one], cuts[1][one])
            assert torch.equal(alone, together[one])
    finally:
        torch.set_num_threads(before)
