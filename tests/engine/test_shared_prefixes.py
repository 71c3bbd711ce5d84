"""Answers whose prompts share KV blocks have the tokens and logprobs of each alone."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from engine.attention.backend import AttentionBatch
from engine.attention.native import NativeAttention, NativeStep
from engine.kv_dtype import dtype_name
from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.native.library import find_compiler, load_kernels
from engine.testing import family_fields, make_random_model_folder
from scheduling.sampling import SamplingParams, TokenLogprobs
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan, StepResult

BLOCK_SIZE, NUM_BLOCKS, VOCAB = 16, 160, 64
# Two splits of the kernel.
COMMON_TOKENS, NUM_STEPS = 512, 4
SAMPLING = SamplingParams(temperature=0.0, num_logprobs=VOCAB)
Answer = tuple[list[int], list[TokenLogprobs | None]]


class CountingAttention:
    """The compiled kernel, and how many steps read something for several sequences at once."""

    def __init__(self, model: Decoder, layout: KvLayout, *, is_sharing: bool) -> None:
        compiler = find_compiler()
        assert compiler is not None
        config = model.config
        self._inner = NativeAttention(
            layout,
            config.num_heads,
            config.layer_attention,
            load_kernels(compiler),
            is_sharing=is_sharing,
        )
        self.num_shared_steps = 0

    @property
    def arithmetic(self) -> str:
        return self._inner.arithmetic

    def begin(self, batch: AttentionBatch, kv_pool: KvPool) -> NativeStep:
        step = self._inner.begin(batch, kv_pool)
        self.num_shared_steps += step.description.num_rounds > 0
        return step


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    if find_compiler() is None:
        pytest.skip("no C compiler on this machine")
    folder: Path = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32}
    fields = family_fields(
        "llama", **sizes, **heads, vocab_size=VOCAB, max_position_embeddings=1024
    )
    make_random_model_folder(folder, seed=3, fields=fields)
    loaded = load_model(folder, request.param)
    assert isinstance(loaded, Decoder)
    return loaded


def prompt(index: int) -> tuple[int, ...]:
    common = tuple(3 + (i * i + 7 * i) % (VOCAB - 3) for i in range(COMMON_TOKENS))
    return common + tuple(3 + (5 * i + 11 * index) % (VOCAB - 3) for i in range(6 + 9 * index))


def runner_of(model: Decoder, *, is_sharing: bool) -> tuple[ModelRunner, CountingAttention]:
    config = model.config
    layout = KvLayout(
        config.num_layers,
        config.num_kv_heads,
        config.head_dim,
        BLOCK_SIZE,
        dtype_name(model.dtype),
    )
    attention = CountingAttention(model, layout, is_sharing=is_sharing)
    return ModelRunner(model, KvPool(layout, NUM_BLOCKS), 8, attention), attention


def answers(
    model: Decoder, indices: Sequence[int], *, is_sharing: bool
) -> tuple[list[Answer], int]:
    """Greedy answers over one common beginning, and the steps that read it for several."""
    runner, attention = runner_of(model, is_sharing=is_sharing)
    num_common = COMMON_TOKENS // BLOCK_SIZE
    free = num_common
    results: list[StepResult] = []
    for slot, index in enumerate(indices):
        tokens = prompt(index)
        num_own = -(-(len(tokens) + NUM_STEPS) // BLOCK_SIZE) - num_common
        table = (*range(num_common), *range(free, free + num_own))
        free += num_own
        runner.add(SequenceStart(slot, tokens, len(tokens), SAMPLING, table))
        # Only the first computes what is common.
        start = COMMON_TOKENS if slot else 0
        chunk = ScheduledChunk(slot, start, len(tokens) - start, True)
        results.append(runner.step(StepPlan((chunk,))))
    for step in range(NUM_STEPS):
        ends = [len(prompt(index)) + step for index in indices]
        chunks = [ScheduledChunk(slot, end, 1, True) for slot, end in enumerate(ends)]
        results.append(runner.step(StepPlan(tuple(chunks))))
    return by_slot(results, len(indices)), attention.num_shared_steps


def by_slot(results: Sequence[StepResult], num_slots: int) -> list[Answer]:
    found: list[Answer] = [([], []) for _ in range(num_slots)]
    for result in results:
        for place, slot in enumerate(result.slots):
            found[slot][0].append(result.token_ids[place])
            found[slot][1].append(result.logprobs[place])
    return found


@pytest.mark.parametrize("num_answers", [2, 8])
def test_answers_to_one_beginning_are_those_of_each_alone(model: Decoder, num_answers: int) -> None:
    torch.set_num_threads(1)
    indices = range(num_answers)
    together, num_shared_steps = answers(model, indices, is_sharing=True)
    assert num_shared_steps == NUM_STEPS
    assert together == answers(model, indices, is_sharing=False)[0]
    for index in indices:
        assert together[index] == answers(model, [index], is_sharing=True)[0][0]


def answers_with_changes(model: Decoder, *, is_sharing: bool) -> tuple[list[Answer], list[bool]]:
    """Eight answers: one ends, its slot goes to another prompt, blocks of two others move.

    Also whether something was read for several, step by step.
    """
    runner, attention = runner_of(model, is_sharing=is_sharing)
    num_common = COMMON_TOKENS // BLOCK_SIZE
    lengths = [len(prompt(index)) for index in range(8)]
    results: list[StepResult] = []
    shared: list[bool] = []

    def step(*prompt_chunks: ScheduledChunk) -> None:
        computing = {chunk.slot for chunk in prompt_chunks}
        decoding = [slot for slot in range(8) if slot not in computing and slot in live]
        chunks = [ScheduledChunk(slot, lengths[slot], 1, True) for slot in decoding]
        before = attention.num_shared_steps
        results.append(runner.step(StepPlan((*chunks, *prompt_chunks))))
        shared.append(attention.num_shared_steps > before)
        for slot in decoding:
            lengths[slot] += 1

    live: set[int] = set()
    for slot in range(8):
        first = num_common + 5 * slot
        table = (*range(num_common), *range(first, first + 5))
        runner.add(SequenceStart(slot, prompt(slot), lengths[slot], SAMPLING, table))
        start = COMMON_TOKENS if slot else 0
        # Those that came before go on beside the prompt.
        step(ScheduledChunk(slot, start, lengths[slot] - start, True))
        live.add(slot)
    step()
    runner.remove(3)
    lengths[3], own = 530, num_common + 5 * 8
    tokens = tuple(3 + 13 * i % (VOCAB - 3) for i in range(530))
    runner.add(SequenceStart(3, tokens, 530, SAMPLING, tuple(range(own, own + 34))))
    step(ScheduledChunk(3, 0, 530, True))
    step()
    pool, moved = runner.kv_pool.tensor, own + 34
    pool[moved : moved + 32] = pool[:num_common]
    for slot in (5, 6):
        runner.replace_blocks(slot, 0, range(moved, moved + 32))
    step()
    runner.replace_blocks(5, 0, range(16))
    step()
    return by_slot(results, 8), shared


def test_answers_stay_the_same_when_others_come_and_go_and_blocks_move(model: Decoder) -> None:
    torch.set_num_threads(1)
    found, shared = answers_with_changes(model, is_sharing=True)
    # From the step on in which two go on beside a third one's prompt.
    assert shared == [False, False] + [True] * 11
    assert found == answers_with_changes(model, is_sharing=False)[0]
    for slot in (1, 5):
        tokens, logprobs = answers(model, [slot], is_sharing=True)[0][0]
        assert found[slot][0][: 1 + NUM_STEPS] == tokens
        assert found[slot][1][: 1 + NUM_STEPS] == logprobs
