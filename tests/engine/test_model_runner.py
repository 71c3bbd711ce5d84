from pathlib import Path

import pytest
import torch

from engine.attention.backend import AttentionBackend
from engine.attention.choice import AttentionShape, choose_attention
from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.runner import (
    BlockTableTooShort,
    InvalidChunk,
    InvalidSequence,
    LogitsNotFinite,
    SlotTaken,
    UnknownSlot,
)
from engine.testing import (
    GREEDY,
    TrialRequest,
    family_config,
    family_fields,
    make_random_model_folder,
    run_together,
)
from scheduling.sampling import SamplingParams
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan

FIELDS = family_fields("llama", max_position_embeddings=64)
CONFIG = family_config("llama", max_position_embeddings=64)
LAYOUT = KvLayout(CONFIG.num_layers, CONFIG.num_kv_heads, CONFIG.head_dim, 8, "float32")
NUM_BLOCKS = 32
PROMPT = tuple(range(5, 25))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    torch.set_num_threads(1)
    folder: Path = tmp_path_factory.mktemp("model")
    make_random_model_folder(folder, fields=FIELDS)
    return load_model(folder)


@pytest.fixture
def runner(model: Decoder) -> ModelRunner:
    return ModelRunner(model, KvPool(LAYOUT, NUM_BLOCKS), max_num_seqs=4)


def start(
    slot: int,
    tokens: tuple[int, ...] = PROMPT,
    blocks: tuple[int, ...] = (3, 1, 2),
    sampling: SamplingParams = GREEDY,
) -> SequenceStart:
    return SequenceStart(slot, tokens, len(tokens), sampling, blocks)


def plan(*chunks: tuple[int, int, int, bool]) -> StepPlan:
    return StepPlan(tuple(ScheduledChunk(*chunk) for chunk in chunks))


def test_results_come_in_the_order_of_the_plan(runner: ModelRunner) -> None:
    runner.add(start(2))
    runner.add(start(0, tokens=(9,), blocks=(7,)))
    runner.add(start(1, blocks=(4, 5, 6)))
    result = runner.step(plan((2, 0, 20, True), (1, 0, 7, False), (0, 0, 1, True)))
    assert result.slots == (2, 0)
    assert result.logprobs == ()
    alone = run_together(
        runner_of_same(runner), [TrialRequest(PROMPT, 1), TrialRequest((9,), 1)], 8, NUM_BLOCKS
    )
    assert result.token_ids == (alone[0].token_ids[0], alone[1].token_ids[0])


def runner_of_same(runner: ModelRunner) -> ModelRunner:
    return ModelRunner(runner.model, KvPool(LAYOUT, NUM_BLOCKS), max_num_seqs=4)


def test_a_sampled_token_becomes_part_of_the_history(runner: ModelRunner) -> None:
    runner.add(start(0))
    runner.step(plan((0, 0, 20, True)))
    assert len(runner.step(plan((0, 20, 1, True))).token_ids) == 1
    with pytest.raises(InvalidChunk, match="22 tokens"):
        runner.step(plan((0, 22, 1, True)))


def test_a_step_without_sampling_returns_nothing(runner: ModelRunner) -> None:
    runner.add(start(0))
    assert runner.step(plan((0, 0, 8, False))).token_ids == ()
    assert runner.step(StepPlan(())).token_ids == ()


def test_a_slot_can_be_used_again_after_its_sequence_left(runner: ModelRunner) -> None:
    runner.add(start(3))
    first = runner.step(plan((3, 0, 20, True)))
    runner.remove(3)
    runner.add(start(3, blocks=(9, 10, 11)))
    assert runner.step(plan((3, 0, 20, True))) == first


def test_histories_longer_than_the_first_arrays_are_kept(tmp_path: Path, model: Decoder) -> None:
    fields = family_fields("llama", num_hidden_layers=1, max_position_embeddings=2048)
    config = make_random_model_folder(tmp_path, fields=fields)
    layout = KvLayout(1, config.num_kv_heads, config.head_dim, 4, "float32")
    long = TrialRequest(tuple(3 + i % 300 for i in range(700)), 5, chunk_tokens=256)
    short = TrialRequest((5, 6), 300)
    runner = ModelRunner(load_model(tmp_path), KvPool(layout, 600), max_num_seqs=2)
    together = run_together(runner, [short, long], 4, 600)
    alone = run_together(runner, [long], 4, 600)
    assert together[1] == alone[0]
    assert len(together[0].token_ids) == 300


def test_stale_contents_of_a_block_never_reach_a_sequence(model: Decoder) -> None:
    clean, dirty = KvPool(LAYOUT, NUM_BLOCKS), KvPool(LAYOUT, NUM_BLOCKS)
    dirty.tensor.fill_(float("nan"))
    results = [
        run_together(ModelRunner(model, pool, 4), [TrialRequest(PROMPT, 20)], 8, NUM_BLOCKS)
        for pool in (clean, dirty)
    ]
    assert results[0] == results[1]


def test_kv_computed_elsewhere_is_used_where_it_lies(model: Decoder) -> None:
    prefill_pool, decode_pool = KvPool(LAYOUT, NUM_BLOCKS), KvPool(LAYOUT, NUM_BLOCKS)
    prefill = ModelRunner(model, prefill_pool, max_num_seqs=1)
    prefill.add(start(0, blocks=(3, 1, 2)))
    first = prefill.step(plan((0, 0, 20, True))).token_ids
    size = LAYOUT.block_bytes
    for source, target in ((3, 30), (1, 31), (2, 29)):
        decode_pool.as_bytes()[target * size : (target + 1) * size] = prefill_pool.as_bytes()[
            source * size : (source + 1) * size
        ]
    decode = ModelRunner(model, decode_pool, max_num_seqs=8)
    decode.add(SequenceStart(5, PROMPT + first, len(PROMPT), GREEDY, (30, 31, 29)))
    second = decode.step(plan((5, 20, 1, True))).token_ids
    expected = run_together(prefill_again(model), [TrialRequest(PROMPT, 2)], 8, NUM_BLOCKS)
    assert [*first, *second] == expected[0].token_ids


def prefill_again(model: Decoder) -> ModelRunner:
    return ModelRunner(model, KvPool(LAYOUT, NUM_BLOCKS), max_num_seqs=1)


def test_logits_that_are_not_numbers_name_their_slots_and_the_step_can_be_repeated(
    model: Decoder,
) -> None:
    pool = KvPool(LAYOUT, NUM_BLOCKS)
    runner = ModelRunner(model, pool, max_num_seqs=4)
    runner.add(start(0, blocks=(3, 1, 2)))
    runner.add(start(1, blocks=(4, 5, 6)))
    expected = runner.step(plan((0, 0, 20, True))).token_ids
    runner.remove(0)
    runner.add(start(0, blocks=(3, 1, 2)))
    runner.step(plan((0, 0, 19, False), (1, 0, 19, False)))
    pool.tensor[4].fill_(float("nan"))
    with pytest.raises(LogitsNotFinite) as caught:
        runner.step(plan((1, 19, 1, True), (0, 19, 1, True)))
    assert caught.value.slots == (1,)
    assert runner.step(plan((0, 19, 1, True))).token_ids == expected


def test_misuse_of_slots_is_named(runner: ModelRunner) -> None:
    runner.add(start(0))
    with pytest.raises(SlotTaken):
        runner.add(start(0))
    with pytest.raises(SlotTaken):
        runner.add(start(4))
    for unknown in (1, -1, 99):
        with pytest.raises(UnknownSlot):
            runner.remove(unknown)
        with pytest.raises(UnknownSlot):
            runner.extend_blocks(unknown, [1])
        with pytest.raises(UnknownSlot):
            runner.step(plan((unknown, 0, 1, False)))


@pytest.mark.parametrize(
    "chunk", [(0, -1, 3, False), (0, 0, 0, False), (0, 15, 6, False), (0, 0, 5, True)]
)
def test_chunks_outside_the_history_are_named(
    runner: ModelRunner, chunk: tuple[int, int, int, bool]
) -> None:
    runner.add(start(0))
    with pytest.raises(InvalidChunk):
        runner.step(plan(chunk))
    with pytest.raises(InvalidChunk, match="twice"):
        runner.step(plan((0, 0, 2, False), (0, 2, 2, False)))


def test_a_chunk_beyond_its_blocks_is_named_and_works_after_extending(
    runner: ModelRunner,
) -> None:
    runner.add(start(0, blocks=(3, 1)))
    with pytest.raises(BlockTableTooShort) as caught:
        runner.step(plan((0, 0, 20, True)))
    assert (caught.value.needed_tokens, caught.value.held_tokens) == (20, 16)
    runner.extend_blocks(0, [2])
    assert len(runner.step(plan((0, 0, 20, True))).token_ids) == 1


def test_a_block_that_was_not_written_yet_can_be_another(model: Decoder) -> None:
    """Two sequences in one block, one after the other: the second gets a block of its own."""
    alone = run_together(prefill_again(model), [TrialRequest(PROMPT, 12)], 8, NUM_BLOCKS)
    runner = ModelRunner(model, KvPool(LAYOUT, NUM_BLOCKS), max_num_seqs=4)
    runner.add(start(0, blocks=(3, 1, 2, 9)))
    runner.add(start(1, blocks=(4, 5, 9, 6)))
    tokens = list(runner.step(plan((0, 0, 20, True), (1, 0, 20, True))).token_ids)
    # The second has written 20 tokens, so its third block is begun; it must not be replaced. The
    # first comes to its fourth, which is the other's, and gets a new one there.
    runner.replace_blocks(0, 3, [10])
    mine = [tokens[0]]
    for length in range(21, 32):
        mine += runner.step(plan((0, length - 1, 1, True), (1, length - 1, 1, True))).token_ids[:1]
    assert mine == list(alone[0].token_ids)
    with pytest.raises(InvalidSequence, match="block id"):
        runner.replace_blocks(0, 0, [NUM_BLOCKS])


def test_a_position_beyond_the_context_is_named(runner: ModelRunner) -> None:
    runner.add(start(0, tokens=tuple(range(65)), blocks=tuple(range(10))))
    with pytest.raises(InvalidChunk, match="context is 64"):
        runner.step(plan((0, 0, 65, True)))


@pytest.mark.parametrize("token", [-1, CONFIG.vocab_size])
def test_tokens_and_blocks_out_of_range_are_named(runner: ModelRunner, token: int) -> None:
    with pytest.raises(InvalidSequence, match="token id"):
        runner.add(start(0, tokens=(5, token)))
    with pytest.raises(InvalidSequence, match="block id"):
        runner.add(start(0, blocks=(NUM_BLOCKS,)))
    with pytest.raises(InvalidSequence, match="prompt tokens"):
        runner.add(start(0, tokens=()))
    runner.add(start(0))
    with pytest.raises(InvalidSequence, match="block id"):
        runner.extend_blocks(0, [-1])


def test_a_pool_of_another_shape_is_refused(model: Decoder) -> None:
    other = KvLayout(CONFIG.num_layers + 1, CONFIG.num_kv_heads, CONFIG.head_dim, 8, "float32")
    with pytest.raises(ValueError, match="does not fit"):
        ModelRunner(model, KvPool(other, 4), max_num_seqs=1)


def test_the_arithmetic_has_the_same_name_for_the_same_model_and_attention(model: Decoder) -> None:
    names = [ModelRunner(model, KvPool(LAYOUT, 4), max_num_seqs=n).arithmetic for n in (1, 9)]
    assert names[0] == names[1]
    # Splits are whole blocks: with larger ones sums are taken in another order.
    large = KvLayout(CONFIG.num_layers, CONFIG.num_kv_heads, CONFIG.head_dim, 128, "float32")
    by_split = {
        ModelRunner(model, KvPool(layout, 4), 1, torch_attention(layout)).arithmetic
        for layout in (LAYOUT, large)
    }
    assert len(by_split) == 2


def torch_attention(layout: KvLayout) -> AttentionBackend:
    shape = AttentionShape(layout, CONFIG.num_heads, CONFIG.layer_attention, torch.device("cpu"))
    return choose_attention(shape, "torch")
