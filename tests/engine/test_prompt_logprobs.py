"""Logprobs of a prompt are the model's, in whatever chunks and company it is computed."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import transformers

from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.runner import InvalidSequence, LogitsNotFinite
from engine.testing import TrialRequest, make_random_model_folder, run_together
from scheduling.sampling import PromptLogprobs, SamplingParams
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan

BLOCK_SIZE, NUM_BLOCKS = 8, 64
SCORED = SamplingParams(temperature=0.0, num_prompt_logprobs=4, num_logprobs=4)
PROMPT = tuple(torch.randint(0, 320, (50,), generator=torch.Generator().manual_seed(6)).tolist())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "llama"
    make_random_model_folder(path, "llama", 3)
    return path


@pytest.fixture(scope="module")
def model(folder: Path) -> Decoder:
    torch.set_num_threads(1)
    return load_model(folder)


def runner_of(model: Decoder) -> ModelRunner:
    config = model.config
    layout = KvLayout(
        config.num_layers, config.num_kv_heads, config.head_dim, BLOCK_SIZE, "float32"
    )
    return ModelRunner(model, KvPool(layout, NUM_BLOCKS), max_num_seqs=8)


def scored(model: Decoder, *requests: TrialRequest) -> list[list[PromptLogprobs]]:
    results = run_together(runner_of(model), requests, BLOCK_SIZE, NUM_BLOCKS)
    return [result.prompt_logprobs for result in results]


def flat(pieces: Sequence[PromptLogprobs]) -> tuple[list[float], list[int], list[float]]:
    """All pieces as one; they must follow each other from the second token on."""
    due = 1
    for piece in pieces:
        assert piece.first_token_index == due
        due = piece.end_token_index
    return (
        [value for piece in pieces for value in piece.logprobs],
        [token_id for piece in pieces for token_id in piece.top_token_ids],
        [value for piece in pieces for value in piece.top_logprobs],
    )


@pytest.mark.parametrize("chunk_tokens", [1, 7, 16, 50])
def test_they_are_what_transformers_says(model: Decoder, folder: Path, chunk_tokens: int) -> None:
    (pieces,) = scored(model, TrialRequest(PROMPT, 1, SCORED, chunk_tokens))
    logprobs, top_ids, top_logprobs = flat(pieces)
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.inference_mode():
        expected = torch.log_softmax(reference(torch.tensor([PROMPT])).logits[0, :-1], -1)
    wanted = expected.gather(1, torch.tensor(PROMPT[1:])[:, None]).flatten()
    torch.testing.assert_close(torch.tensor(logprobs), wanted, rtol=1e-4, atol=1e-4)
    best = expected.topk(4)
    assert top_ids == best.indices.flatten().tolist()
    torch.testing.assert_close(
        torch.tensor(top_logprobs), best.values.flatten(), rtol=1e-4, atol=1e-4
    )


def test_chunks_and_company_change_no_bit(model: Decoder) -> None:
    (whole,) = scored(model, TrialRequest(PROMPT, 1, SCORED))
    for chunk_tokens in (1, 3, 16, 49):
        others = (
            TrialRequest(PROMPT[5:20], 4, SamplingParams(temperature=0.0)),
            TrialRequest(PROMPT, 2, SCORED, chunk_tokens),
            TrialRequest(PROMPT[:30], 3, SCORED, 11),
        )
        none, same, shorter = scored(model, *others)
        assert none == []
        assert flat(same) == flat(whole)
        assert flat(shorter)[0] == flat(whole)[0][:29]


def test_output_that_is_computed_again_is_no_prompt(model: Decoder) -> None:
    again = TrialRequest(PROMPT[:20], 2, SCORED, 7, known_output=PROMPT[20:32])
    (pieces,) = scored(model, again)
    assert len(flat(pieces)[0]) == 19
    (alone,) = scored(model, TrialRequest(PROMPT[:20], 1, SCORED))
    assert flat(pieces) == flat(alone)


def test_a_prompt_of_one_token_has_none(model: Decoder) -> None:
    assert scored(model, TrialRequest(PROMPT[:1], 3, SCORED)) == [[]]


def test_the_first_output_token_has_its_logprobs_too(model: Decoder) -> None:
    request = TrialRequest(PROMPT, 2, SCORED, 16)
    (result,) = run_together(runner_of(model), [request], BLOCK_SIZE, NUM_BLOCKS)
    # What follows the prompt with one token more is a prompt token there.
    longer = TrialRequest((*PROMPT, result.token_ids[0]), 1, SCORED)
    (pieces,) = scored(model, longer)
    first = result.logprobs[0]
    assert first is not None
    logprobs, top_ids, _ = flat(pieces)
    assert first.logprob == pytest.approx(logprobs[-1], abs=1e-6)
    assert [token_id for token_id, _ in first.top] == top_ids[-4:]


def test_logits_that_are_not_numbers_name_the_slot(model: Decoder) -> None:
    runner = runner_of(model)
    runner.add(SequenceStart(3, PROMPT, len(PROMPT), SCORED, tuple(range(7))))
    runner.step(StepPlan((ScheduledChunk(3, 0, 8, False),)))
    runner.kv_pool.tensor[0].fill_(float("nan"))
    with pytest.raises(LogitsNotFinite) as caught:
        runner.step(StepPlan((ScheduledChunk(3, 8, 8, False),)))
    assert caught.value.slots == (3,)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(logit_bias=((320, 1.0),)),
        SamplingParams(logit_bias=((-1, 1.0),)),
        SamplingParams(min_tokens=1, end_token_ids=(320,)),
        SamplingParams(min_tokens=1, end_token_ids=tuple(range(320))),
    ],
)
def test_ids_that_the_model_does_not_have_are_refused(
    model: Decoder, sampling: SamplingParams
) -> None:
    with pytest.raises(InvalidSequence):
        runner_of(model).add(SequenceStart(0, PROMPT, len(PROMPT), sampling, ()))
