"""A pass that is begun before the tokens of the pass before are known."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from engine.attention.choice import AttentionShape, choose_attention
from engine.cuda_capture import CudaCapture
from engine.host_copies import HostCopies
from engine.host_copies_testing import LateCopies, zeros_of
from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_runner import ModelRunner
from engine.models.capture_testing import FakeCapture
from engine.models.decoder import Decoder
from engine.numberless_testing import META, NumberlessAttention, NumberlessModel
from engine.runner import LogitsNotFinite, ResultAwaited, SlotInFlight
from engine.testing import GREEDY, family_fields, make_random_model_folder
from scheduling.sampling import SamplingParams
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan, StepResult

Kernels = Literal["auto", "torch"]
FIELDS = family_fields("llama", max_position_embeddings=256)
BLOCK_SIZE, BLOCKS_EACH = 16, 4
PROMPT = tuple(range(5, 25))
NUM_STEPS = 24
KINDS = {
    "greedy": GREEDY,
    "drawn from all": SamplingParams(seed=7),
    "every cut": SamplingParams(temperature=1.3, top_k=40, top_p=0.9, min_p=0.01, seed=3),
    "min_tokens": SamplingParams(0.0, min_tokens=9, end_token_ids=tuple(range(0, 300, 2))),
    "bias": SamplingParams(seed=9, logit_bias=((17, 4.0), (30, -3.0))),
    "penalties": SamplingParams(0.0, repetition_penalty=1.7, frequency_penalty=0.4),
    "presence": SamplingParams(seed=2, presence_penalty=2.0, top_k=5),
    "logprobs": SamplingParams(seed=5, num_logprobs=4),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("model")
    make_random_model_folder(folder, fields=FIELDS)
    return load_model(folder)


def runner_of(
    model: Decoder, copies: HostCopies | None = None, kernels: Kernels = "auto"
) -> ModelRunner:
    config, dtype = model.config, str(model.dtype).removeprefix("torch.")
    heads = (config.num_kv_heads, config.head_dim)
    layout = KvLayout(config.num_layers, *heads, BLOCK_SIZE, dtype)
    pool = KvPool(layout, BLOCKS_EACH * len(KINDS), model.device)
    shape = AttentionShape(
        layout, config.num_heads, config.layer_attention, model.device, model.dtype
    )
    attention = choose_attention(shape, kernels)
    return ModelRunner(model, pool, len(KINDS), attention, host_copies=copies)


def numberless_runner(copies: LateCopies, max_rows: int | None = None) -> ModelRunner:
    layout = KvLayout(1, 1, 8, BLOCK_SIZE, "float32")
    pool = KvPool(layout, BLOCKS_EACH * len(KINDS), META)
    model = NumberlessModel(max_rows)
    return ModelRunner(model, pool, len(KINDS), NumberlessAttention(), host_copies=copies)


def table(slot: int) -> tuple[int, ...]:
    return tuple(range(slot * BLOCKS_EACH, (slot + 1) * BLOCKS_EACH))


def prompts(runner: ModelRunner, samplings: Sequence[SamplingParams]) -> StepPlan:
    """Take the sequences in, of various lengths; the pass that computes them."""
    chunks = []
    for slot, sampling in enumerate(samplings):
        tokens = PROMPT[slot:]
        runner.add(SequenceStart(slot, tokens, len(tokens), sampling, table(slot)))
        chunks.append(ScheduledChunk(slot, 0, len(tokens), True))
    return StepPlan(tuple(chunks))


def decode(num_steps: int, slots: Sequence[int]) -> StepPlan:
    """Their tokens so many steps after the prompts."""
    chunks = (ScheduledChunk(slot, len(PROMPT) - slot + num_steps, 1, True) for slot in slots)
    return StepPlan(tuple(chunks))


def one_after_the_other(runner: ModelRunner, samplings: Sequence[SamplingParams]) -> list[Any]:
    results = [runner.step(prompts(runner, samplings))]
    slots = range(len(samplings))
    return results + [runner.step(decode(step, slots)) for step in range(NUM_STEPS)]


def one_behind_the_other(runner: ModelRunner, samplings: Sequence[SamplingParams]) -> list[Any]:
    """Each pass is begun before the result of the one before is taken."""
    pending = runner.begin(prompts(runner, samplings))
    results: list[StepResult] = []
    for step in range(NUM_STEPS):
        behind = runner.begin(decode(step, range(len(samplings))))
        results.append(pending.result())
        pending = behind
    return [*results, pending.result()]


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_one_pass_after_the_other(model: Decoder, kind: str) -> None:
    samplings = [KINDS[kind], GREEDY]
    expected = one_after_the_other(runner_of(model), samplings)
    assert one_behind_the_other(runner_of(model, LateCopies()), samplings) == expected


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_all_kinds_of_sampling_go_together(model: Decoder, kernels: Kernels) -> None:
    samplings = list(KINDS.values())
    expected = one_after_the_other(runner_of(model, kernels=kernels), samplings)
    found = one_behind_the_other(runner_of(model, LateCopies(), kernels), samplings)
    assert found == expected


def test_recorded_layers_are_given_tokens_that_the_host_does_not_know(tmp_path: Path) -> None:
    make_random_model_folder(tmp_path, fields=FIELDS)
    model = load_model(tmp_path, kernels="torch")
    samplings = list(KINDS.values())
    expected = one_after_the_other(runner_of(model, kernels="torch"), samplings)
    model.capture(len(KINDS), FakeCapture())
    found = one_behind_the_other(runner_of(model, LateCopies(), "torch"), samplings)
    assert found == expected


def test_sequences_may_join_and_rest_between_passes(model: Decoder) -> None:
    """One rests in a pass ahead, another is only begun in one."""
    expected = one_after_the_other(runner_of(model), [GREEDY, KINDS["penalties"]])
    mine = [result.token_ids[0] for result in expected]
    others = [result.token_ids[1] for result in expected]
    runner = runner_of(model, LateCopies())
    runner.step(prompts(runner, [GREEDY, KINDS["penalties"]]))
    first = runner.begin(decode(0, [0, 1]))
    second = runner.begin(decode(1, [1]))
    assert first.result().token_ids == (mine[1], others[1])
    # The KV of its prompt came from elsewhere.
    runner.kv_pool.tensor[list(table(2))] = runner.kv_pool.tensor[list(table(0))].clone()
    tokens = (*PROMPT, mine[0])
    runner.add(SequenceStart(2, tokens, len(PROMPT), GREEDY, table(2)))
    joining = ScheduledChunk(2, len(PROMPT), 1, True)
    third = runner.begin(
        StepPlan((*decode(1, [0]).chunks, joining, *decode(2, [1]).chunks)),
    )
    assert second.result().token_ids == (others[2],)
    assert third.result().token_ids == (mine[2], mine[1], others[3])


def test_nothing_is_waited_for_between_two_begins(model: Decoder) -> None:
    copies = LateCopies()
    runner = runner_of(model, copies)
    one_behind_the_other(runner, [GREEDY])
    first, *later = [copies.notes[i : i + 2] for i in range(0, len(copies.notes) - 1, 2)]
    assert first == ["begun", "begun"]
    assert all(pair == ["waited", "begun"] for pair in later[:-1])


def test_no_number_is_looked_at_while_passes_are_ordered() -> None:
    """Nothing has a number on this device: what waits for one raises."""
    runner = numberless_runner(LateCopies(zeros_of))
    samplings = [
        replace(sampling, end_token_ids=tuple(i for i in sampling.end_token_ids if i < 100))
        for sampling in KINDS.values()
    ]
    results = one_behind_the_other(runner, samplings)
    assert len(results) == NUM_STEPS + 1


def test_a_pass_that_samples_nothing_has_ended_as_well_when_its_result_is_there() -> None:
    """Its blocks may go to a sender then, and attention plans in the memory of its plan."""
    copies = LateCopies(zeros_of)
    runner = numberless_runner(copies)
    runner.add(SequenceStart(0, PROMPT, len(PROMPT), GREEDY, table(0)))
    pending = runner.begin(StepPlan((ScheduledChunk(0, 0, 8, samples=False),)))
    assert copies.notes == ["begun"]
    assert pending.result() == StepResult((), ())
    assert copies.notes == ["begun", "waited"]
    runner.begin(StepPlan((ScheduledChunk(0, 8, 4, samples=False),))).discard()
    assert copies.notes == ["begun", "waited"] * 2


def test_a_piece_of_a_pass_waits_for_the_pieces_before_it() -> None:
    """Attention plans for one that runs and one behind it, whatever these are."""
    copies = LateCopies(zeros_of)
    runner = numberless_runner(copies, max_rows=8)
    runner.begin(prompts(runner, [GREEDY])).result()
    assert copies.notes == ["settled", "settled", "begun", "waited"]
    runner.begin(decode(0, [0])).result()
    assert copies.notes[4:] == ["begun", "waited"]


def test_at_most_two_passes_are_under_way_and_a_slot_stays_taken(model: Decoder) -> None:
    runner = runner_of(model)
    first = runner.begin(prompts(runner, [GREEDY]))
    second = runner.begin(decode(0, [0]))
    with pytest.raises(ResultAwaited):
        runner.begin(decode(1, [0]))
    with pytest.raises(SlotInFlight):
        runner.remove(0)
    first.result()
    with pytest.raises(SlotInFlight):
        runner.remove(0)
    second.result()
    runner.remove(0)


def test_a_discarded_pass_leaves_nothing_behind(model: Decoder) -> None:
    expected = one_after_the_other(runner_of(model), [KINDS["every cut"]])
    runner = runner_of(model)
    assert runner.begin(prompts(runner, [KINDS["every cut"]])).result() == expected[0]
    for step in range(NUM_STEPS - 1):
        first, second = runner.begin(decode(step, [0])), runner.begin(decode(step + 1, [0]))
        assert first.result() == expected[step + 1]
        second.discard()
        second.discard()


def test_numbers_that_are_none_are_found_with_the_result(model: Decoder) -> None:
    samplings = [GREEDY, KINDS["every cut"]]
    expected = one_after_the_other(runner_of(model), samplings)
    runner = runner_of(model)
    assert runner.step(prompts(runner, samplings)) == expected[0]
    assert runner.step(decode(0, [0, 1])) == expected[1]
    runner.kv_pool.tensor[table(1)[0]].fill_(float("nan"))
    first = runner.begin(decode(1, [0, 1]))
    second = runner.begin(decode(2, [0, 1]))
    with pytest.raises(LogitsNotFinite) as caught:
        first.result()
    assert caught.value.slots == (1,)
    second.discard()
    runner.remove(1)
    # Nothing of the others was appended, so they are computed again.
    for step in range(1, NUM_STEPS):
        assert runner.step(decode(step, [0])).token_ids[0] == expected[step + 1].token_ids[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    ("dtype", "head_dim"),
    # FlashInfer has kernels for the second only.
    [("float32", FIELDS["head_dim"]), ("bfloat16", 64)],
)
@pytest.mark.parametrize("is_recorded", [False, True])
def test_a_gpu_is_not_waited_for_while_passes_are_ordered(
    tmp_path: Path, dtype: str, head_dim: int, is_recorded: bool
) -> None:
    make_random_model_folder(tmp_path, fields={**FIELDS, "head_dim": head_dim})
    model = load_model(tmp_path, dtype, "cuda")
    if is_recorded:
        model.capture(len(KINDS), CudaCapture(model.device))
    samplings = list(KINDS.values())
    expected = one_after_the_other(runner_of(model), samplings)
    runner = runner_of(model)
    assert runner.step(prompts(runner, samplings)) == expected[0]
    pending = runner.begin(decode(0, range(len(KINDS))))
    results: list[StepResult] = []
    cuda: Any = torch.cuda
    for step in range(1, NUM_STEPS):
        # What a kernel or a pool of memory needs at the first use may wait.
        cuda.set_sync_debug_mode("error" if step > 3 else "default")
        try:
            behind = runner.begin(decode(step, range(len(KINDS))))
        finally:
            cuda.set_sync_debug_mode("default")
        results.append(pending.result())
        pending = behind
    assert [*results, pending.result()] == expected[1:]
