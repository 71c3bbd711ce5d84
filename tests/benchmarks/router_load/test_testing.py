"""The fake worker says what a real one says, in ready-made bytes."""

from benchmarks.router_load.testing import TEXT, TOKEN_ID, FakeWorker, Role
from runtime.wire import ReportBatch, decode_response
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.messages import (
    AdmitGeneration,
    BlocksGranted,
    CancelTask,
    DecodeStarted,
    KvPushed,
    PrefillStarted,
    PushTo,
    Report,
    SequenceSpec,
    StartDecode,
    StartPrefill,
    TaskReleased,
    TokensEmitted,
)
from scheduling.sampling import SamplingParams, StopParams
from tandemserve.internal.v1 import worker_pb2 as pb

TASK = TaskId("request/0~router-0.1.1")


def sequence(max_tokens: int) -> SequenceSpec:
    sampling = SamplingParams(temperature=0.0, top_k=0, top_p=1.0, seed=1)
    return SequenceSpec((1, 2, 3), (), sampling, StopParams(max_tokens, (), ()))


def worker_of(role: Role) -> FakeWorker:
    return FakeWorker(role, WorkerId(f"{role}-0"), Incarnation(1))


def said(frames: list[bytes]) -> list[Report]:
    """What a router reads out of frames."""
    reports: list[Report] = []
    for frame in frames:
        batch = decode_response(pb.SessionResponse.FromString(frame))
        assert isinstance(batch, ReportBatch)
        reports += batch.reports
    return reports


def test_a_prompt_of_one_token_ends_on_the_prefill_worker() -> None:
    worker = worker_of("prefill")
    worker.take(StartPrefill(TASK, sequence(1)))
    first, token, released = said(worker.frames())
    assert sorted([type(first).__name__, type(token).__name__]) == [
        "PrefillStarted",
        "TokensEmitted",
    ]
    assert released == TaskReleased(TASK)


def test_a_longer_answer_is_handed_over_and_decoded_token_by_token() -> None:
    prefill, decode = worker_of("prefill"), worker_of("decode")
    prefill.take(StartPrefill(TASK, sequence(4)))
    kinds = {type(report) for report in said(prefill.frames())}
    assert kinds == {PrefillStarted, TokensEmitted}
    decode.take(AdmitGeneration(TASK, sequence(4), 1, 1, "transfer"))
    (granted,) = said(decode.frames())
    assert isinstance(granted, BlocksGranted)
    assert decode.step() is None
    prefill.take(PushTo(TASK, granted.target))
    pushed, released = said(prefill.frames())
    assert isinstance(pushed, KvPushed)
    assert released == TaskReleased(TASK)
    decode.take(StartDecode(TASK, (TOKEN_ID,)))
    assert said(decode.frames()) == [DecodeStarted(TASK)]
    steps = [frame for _ in range(4) if (frame := decode.step()) is not None]
    assert said(steps) == [
        TokensEmitted(TASK, 1, (TOKEN_ID,), TEXT),
        TokensEmitted(TASK, 2, (TOKEN_ID,), TEXT),
        TokensEmitted(TASK, 3, (TOKEN_ID,), TEXT, finish_reason="length"),
    ]
    assert said(decode.frames()) == [TaskReleased(TASK)]


def test_a_cancelled_answer_ends_at_once() -> None:
    decode = worker_of("decode")
    decode.take(AdmitGeneration(TASK, sequence(4), 1, 1, "transfer"))
    decode.take(StartDecode(TASK, (TOKEN_ID,)))
    decode.frames()
    decode.take(CancelTask(TASK, "left"))
    assert decode.step() is None
    assert said(decode.frames()) == [TaskReleased(TASK)]
