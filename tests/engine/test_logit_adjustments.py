"""Bans, biases and penalties are transformers' arithmetic, and each row's own affair."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from engine.logit_adjustments import adjust
from engine.sampler import SampledBatch, sample
from engine.slot_table import SlotTable
from scheduling.sampling import SamplingParams
from scheduling.step import SequenceStart

VOCAB = 40
token = st.integers(0, VOCAB - 1)


def random_logits(rows: int, seed: int) -> Tensor:
    return 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def start_of(
    slot: int, prompt: Sequence[int], output: Sequence[int], sampling: SamplingParams
) -> SequenceStart:
    return SequenceStart(slot, (*prompt, *output), len(prompt), sampling, ())


def adjusted(
    logits: Tensor, prompt: Sequence[int], output: Sequence[int], sampling: SamplingParams
) -> Tensor:
    """The only row [vocab] of the logits, as the sampler would see it."""
    table = SlotTable(1, 16)
    table.add(start_of(0, prompt, output, sampling))
    adjustments = table.sampling_of(np.array([0])).adjustments
    scores = logits.double()
    if adjustments is not None:
        adjust(scores, adjustments)
    return scores[0]


def expected_scores(
    logits: Tensor, prompt: Sequence[int], output: Sequence[int], sampling: SamplingParams
) -> Tensor:
    """transformers' processors in our order, then the two penalties as OpenAI documents them."""
    processors = LogitsProcessorList()
    if len(output) < sampling.min_tokens and sampling.end_token_ids:
        processors.append(SuppressTokensLogitsProcessor(list(sampling.end_token_ids)))
    if sampling.logit_bias:
        biases = {(token_id,): float(bias) for token_id, bias in sampling.logit_bias}
        processors.append(SequenceBiasLogitsProcessor(biases))
    processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    history = torch.tensor([[*prompt, *output]])
    scores: Tensor = processors(history, logits.double())[0]
    counts = torch.bincount(torch.tensor(output, dtype=torch.long), minlength=VOCAB)
    scores = scores - counts * sampling.frequency_penalty
    return scores - (counts > 0) * sampling.presence_penalty


@st.composite
def samplings(draw: st.DrawFn, is_drawn: bool = False) -> SamplingParams:
    biases = draw(st.dictionaries(token, st.sampled_from([-100.0, -1.5, 0.0, 8.0]), max_size=5))
    return SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.7, 1.5])) if is_drawn else 0.0,
        top_k=draw(st.sampled_from([0, 7])) if is_drawn else 0,
        top_p=draw(st.sampled_from([0.8, 1.0])) if is_drawn else 1.0,
        min_p=draw(st.sampled_from([0.0, 0.1])) if is_drawn else 0.0,
        seed=draw(st.integers(0, 99)),
        repetition_penalty=draw(st.sampled_from([1.0, 0.5, 1.3])),
        presence_penalty=draw(st.sampled_from([0.0, -2.0, 0.75])),
        frequency_penalty=draw(st.sampled_from([0.0, -0.5, 2.0])),
        logit_bias=tuple(biases.items()),
        min_tokens=draw(st.sampled_from([0, 3, 9])),
        end_token_ids=tuple(draw(st.lists(token, max_size=4, unique=True))),
        num_logprobs=draw(st.sampled_from([None, 2])) if is_drawn else None,
    )


histories = st.tuples(st.lists(token, min_size=1, max_size=12), st.lists(token, max_size=8))


@settings(max_examples=150, deadline=None)
@given(history=histories, sampling=samplings(), seed=st.integers(0, 99))
def test_all_together_are_what_transformers_makes_of_them(
    history: tuple[list[int], list[int]], sampling: SamplingParams, seed: int
) -> None:
    logits = random_logits(1, seed)
    expected = expected_scores(logits, *history, sampling)
    torch.testing.assert_close(adjusted(logits, *history, sampling), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(repetition_penalty=1.7),
        SamplingParams(repetition_penalty=0.3),
        SamplingParams(presence_penalty=1.25),
        SamplingParams(frequency_penalty=-0.75),
        SamplingParams(logit_bias=((3, 12.0), (9, -100.0))),
        SamplingParams(min_tokens=4, end_token_ids=(1, 30)),
    ],
)
def test_each_alone_changes_exactly_what_it_should(sampling: SamplingParams) -> None:
    logits = random_logits(1, 5)
    prompt, output = (4, 4, 9), (9, 9, 20)
    found = adjusted(logits, prompt, output, sampling)
    torch.testing.assert_close(found, expected_scores(logits, prompt, output, sampling))
    touched = set(torch.nonzero(found != logits[0].double()).flatten().tolist())
    if sampling.repetition_penalty != 1.0:
        assert touched == {4, 9, 20}
    elif sampling.logit_bias:
        assert touched == {3, 9}
    elif sampling.min_tokens:
        assert touched == {1, 30}
    else:
        assert touched == {9, 20}


def test_nothing_is_adjusted_where_nothing_is_asked_for() -> None:
    table = SlotTable(3, 16)
    table.add(start_of(0, (1,), (), SamplingParams(end_token_ids=(2,))))
    table.add(start_of(1, (1,), (5, 6), SamplingParams(min_tokens=2, end_token_ids=(2,))))
    table.add(start_of(2, (1,), (5,), SamplingParams(min_tokens=2, end_token_ids=(2,))))
    assert table.sampling_of(np.array([0, 1])).adjustments is None
    adjustments = table.sampling_of(np.array([0, 2, 1])).adjustments
    assert adjustments is not None
    assert adjustments.rows.tolist() == [1]


def test_the_next_sequence_in_a_slot_has_nothing_of_the_one_before() -> None:
    table = SlotTable(1, 16)
    biases = tuple((token_id, 5.0) for token_id in range(9))
    early = SamplingParams(logit_bias=biases, repetition_penalty=2.0, min_tokens=3)
    table.add(start_of(0, (1,), (), early))
    table.remove(0)
    table.add(start_of(0, (1,), (), SamplingParams(logit_bias=((20, 1.0),))))
    adjustments = table.sampling_of(np.array([0])).adjustments
    assert adjustments is not None
    scores = torch.zeros(1, VOCAB, dtype=torch.float64)
    adjust(scores, adjustments)
    assert scores[0].nonzero().flatten().tolist() == [20]
    table.remove(0)
    table.add(start_of(0, (1,), (), SamplingParams()))
    assert table.sampling_of(np.array([0])).adjustments is None


Row = tuple[tuple[list[int], list[int]], SamplingParams]


def drawn(rows: Sequence[Row], logits: Tensor, order: Sequence[int]) -> SampledBatch:
    """Rows of one batch, in this order; the slots are those of the rows."""
    table = SlotTable(len(rows), 16)
    for slot in order:
        (prompt, output), sampling = rows[slot]
        table.add(start_of(slot, prompt, output, sampling))
    slots = np.array(order)
    return sample(logits[torch.tensor(order)], table.sampling_of(slots))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), seed=st.integers(0, 99))
def test_other_rows_and_their_order_change_no_row(data: st.DataObject, seed: int) -> None:
    torch.set_num_threads(1)
    row = st.tuples(histories, samplings(is_drawn=True))
    rows = data.draw(st.lists(row, min_size=2, max_size=8))
    order = data.draw(st.permutations(range(len(rows))))
    logits = random_logits(len(rows), seed)
    together = drawn(rows, logits, order)
    for place, slot in enumerate(order):
        alone = drawn(rows, logits, [slot])
        assert alone.token_ids[0] == together.token_ids[place]
        if rows[slot][1].num_logprobs is not None:
            assert alone.logprobs[0] == together.logprobs[place]


def test_counts_are_the_same_when_a_history_is_handed_over() -> None:
    sampling = SamplingParams(
        temperature=0.9, seed=4, repetition_penalty=1.2, frequency_penalty=0.4, presence_penalty=0.2
    )
    prompt, whole = (3, 5, 5), SlotTable(1, 16)
    whole.add(start_of(0, prompt, (), sampling))
    output: list[int] = []
    for step in range(30):
        logits = random_logits(1, step)
        handed_over = SlotTable(1, 16)
        handed_over.add(start_of(0, prompt, output, sampling))
        slots = np.array([0])
        going_on = sample(logits, whole.sampling_of(slots)).token_ids
        assert sample(logits, handed_over.sampling_of(slots)).token_ids == going_on
        whole.append(slots, going_on)
        output.append(int(going_on[0]))
    assert len(set(output)) < len(output)


def test_logprobs_are_the_models_own_whatever_is_asked_of_the_draw() -> None:
    logits = random_logits(1, 8)
    sampling = SamplingParams(
        temperature=0.3,
        top_k=3,
        logit_bias=((7, 100.0),),
        presence_penalty=2.0,
        num_logprobs=2,
    )
    result = drawn([(([1], [7]), sampling)], logits, [0])
    assert result.token_ids.tolist() == [7]
    (entry,) = result.logprobs
    assert entry is not None
    expected = torch.log_softmax(logits[0], -1)
    assert entry.logprob == pytest.approx(expected[7].item())
    assert [token_id for token_id, _ in entry.top] == expected.topk(2).indices.tolist()


def test_drawn_tokens_follow_the_adjusted_distribution() -> None:
    torch.set_num_threads(1)
    num_draws = 20_000
    logits = random_logits(1, 3) / 3
    sampling = SamplingParams(
        temperature=1.2,
        min_p=0.02,
        seed=11,
        repetition_penalty=1.5,
        frequency_penalty=0.5,
        logit_bias=((2, 1.0), (3, -100.0)),
    )
    prompt, output = (1, 2, 6), (6, 6, 8)
    table = SlotTable(num_draws, 16)
    for slot in range(num_draws):
        table.add(start_of(slot, prompt, output, sampling))
    batch = table.sampling_of(np.arange(num_draws))
    batch.output_index[:] = np.arange(num_draws)
    tokens = sample(logits.expand(num_draws, -1), batch).token_ids
    scaled = expected_scores(logits, prompt, output, sampling) / sampling.temperature
    probabilities = torch.softmax(scaled, -1)
    probabilities[probabilities < sampling.min_p * probabilities.max()] = 0
    probabilities /= probabilities.sum()
    counts = np.bincount(tokens, minlength=VOCAB)
    expected = probabilities.numpy() * num_draws
    assert not counts[expected == 0].any()
    is_common = expected >= 5
    chi_square = ((counts - expected)[is_common] ** 2 / expected[is_common]).sum()
    degrees = is_common.sum() - 1
    assert degrees >= 5
    # Mean plus five standard deviations; the seeds are fixed, so this never flickers.
    assert chi_square < degrees + 5 * np.sqrt(2 * degrees)
