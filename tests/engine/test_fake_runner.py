import subprocess
import sys

import pytest

from engine.fake_runner import FakeKvMismatch, FakeRunner, fake_next_token
from engine.runner import BlockTableTooShort, InvalidChunk, SlotTaken, UnknownSlot
from engine.testing import TrialRequest, run_together
from scheduling.sampling import SamplingParams
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan

BLOCK_SIZE, BLOCK_BYTES = 4, 64
GREEDY = SamplingParams(temperature=0.0)


def continuation(prompt: tuple[int, ...], length: int, vocab_size: int = 100) -> list[int]:
    history = list(prompt)
    for _ in range(length):
        history.append(fake_next_token(history, vocab_size, first_token_id=3))
    return history[len(prompt) :]


def test_tokens_depend_on_the_history_alone() -> None:
    kv = memoryview(bytearray(50 * BLOCK_BYTES))
    runner = FakeRunner(100, BLOCK_SIZE, 4, first_token_id=3, kv_bytes=kv, block_bytes=BLOCK_BYTES)
    prompts = [(5,), tuple(range(30)), (5, 6)]
    requests = [TrialRequest(prompt, 9, chunk_tokens=7) for prompt in prompts]
    results = run_together(runner, requests, BLOCK_SIZE, 50)
    assert [result.token_ids for result in results] == [continuation(p, 9) for p in prompts]
    assert runner.live_slots == ()
    assert min(min(result.token_ids) for result in results) >= 3


def test_kv_that_was_not_moved_is_noticed() -> None:
    source, target = (memoryview(bytearray(4 * BLOCK_BYTES)) for _ in range(2))
    prompt = tuple(range(6))
    prefill = FakeRunner(100, BLOCK_SIZE, 1, kv_bytes=source, block_bytes=BLOCK_BYTES)
    prefill.add(SequenceStart(0, prompt, 6, GREEDY, (2, 0)))
    (first,) = prefill.step(StepPlan((ScheduledChunk(0, 0, 6, True),))).token_ids
    target[BLOCK_BYTES : 2 * BLOCK_BYTES] = source[2 * BLOCK_BYTES : 3 * BLOCK_BYTES]
    decode = FakeRunner(100, BLOCK_SIZE, 1, kv_bytes=target, block_bytes=BLOCK_BYTES)
    decode.add(SequenceStart(0, (*prompt, first), 6, GREEDY, (1, 3)))
    with pytest.raises(FakeKvMismatch) as caught:
        decode.step(StepPlan((ScheduledChunk(0, 6, 1, True),)))
    assert (caught.value.position, caught.value.block_id) == (4, 3)
    target[3 * BLOCK_BYTES :] = source[:BLOCK_BYTES]
    step = decode.step(StepPlan((ScheduledChunk(0, 6, 1, True),)))
    assert list(step.token_ids) == [fake_next_token((*prompt, first), 100)]


def test_logprobs_are_reported_where_they_are_asked_for() -> None:
    runner = FakeRunner(100, BLOCK_SIZE, 2)
    runner.add(SequenceStart(0, (1,), 1, SamplingParams(num_logprobs=1), (0,)))
    runner.add(SequenceStart(1, (1,), 1, GREEDY, (1,)))
    step = runner.step(StepPlan(tuple(ScheduledChunk(slot, 0, 1, True) for slot in (0, 1))))
    assert step.logprobs[0] is not None
    assert step.logprobs[0].top[0][0] == step.token_ids[0]
    assert step.logprobs[1] is None


def test_misuse_is_named_as_by_the_real_runner() -> None:
    runner = FakeRunner(100, BLOCK_SIZE, 2)
    with pytest.raises(UnknownSlot):
        runner.remove(0)
    runner.add(SequenceStart(0, (1, 2, 3, 4, 5), 5, GREEDY, (0,)))
    with pytest.raises(SlotTaken):
        runner.add(SequenceStart(0, (1,), 1, GREEDY, (0,)))
    with pytest.raises(SlotTaken):
        runner.add(SequenceStart(2, (1,), 1, GREEDY, (0,)))
    with pytest.raises(BlockTableTooShort):
        runner.step(StepPlan((ScheduledChunk(0, 0, 5, True),)))
    for start, size, samples in ((0, 6, False), (-1, 1, False), (0, 2, True)):
        with pytest.raises(InvalidChunk):
            runner.step(StepPlan((ScheduledChunk(0, start, size, samples),)))


def test_the_fake_runner_needs_no_torch() -> None:
    code = "import sys, engine.fake_runner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
