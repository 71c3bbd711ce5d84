"""Round trips of every message, and a named error for everything a bad peer could send."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.wire import (
    ReportBatch,
    RouterHello,
    decode_request,
    decode_response,
    encode_commands,
    encode_peer,
    encode_reports,
    encode_router_hello,
    encode_worker_hello,
)
from scheduling.ids import BlockId, Generation, Incarnation, RouterId, TaskId, WorkerId
from scheduling.kv_export import KvDoor, KvExport, KvTarget
from scheduling.messages import (
    AdmitGeneration,
    BlocksGranted,
    BlocksRefused,
    CancelTask,
    Command,
    DecodeStarted,
    GrantGrowth,
    GrowthNeeded,
    KvPushed,
    Preempted,
    PrefillStarted,
    PushTo,
    Report,
    ResumeGeneration,
    SequenceSpec,
    StartDecode,
    StartPrefill,
    SwappedOut,
    TaskFailed,
    TaskReleased,
    TokensEmitted,
    WorkerHello,
    WorkerLoad,
)
from scheduling.sampling import SamplingParams, StopParams, TokenLogprobs
from tandemserve.internal.v1 import worker_pb2 as pb

counts = st.integers(0, 2**31 - 1)
positive = st.integers(1, 2**31 - 1)
uint64s = st.integers(0, 2**64 - 1)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
texts = st.text(st.characters(codec="utf-8"), max_size=40)
float32s = st.floats(allow_nan=False, allow_infinity=False, width=32)
token_ids = st.lists(counts, max_size=8).map(tuple)
task_ids = st.sampled_from([TaskId("a/0"), TaskId("a/1"), TaskId("b/0")])
incarnations = uint64s.map(Incarnation)
worker_ids = names.map(WorkerId)

samplings = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2, width=32),
    top_k=counts,
    top_p=st.floats(0, 1, width=32, exclude_min=True),
    seed=uint64s,
    num_logprobs=st.none() | st.integers(0, 20),
)
stops = st.builds(
    StopParams,
    max_tokens=positive,
    stop_token_ids=token_ids,
    stop_strings=st.lists(names, max_size=3).map(tuple),
)
sequences = st.builds(
    SequenceSpec,
    prompt_token_ids=st.lists(counts, min_size=1, max_size=8).map(tuple),
    output_token_ids=token_ids,
    sampling=samplings,
    stop=stops,
    cache_salt=texts,
)
pools = st.builds(
    KvExport,
    transport=names,
    address=texts,
    # Of a hundred blocks at least, however many slices each has and whatever is set aside.
    num_blocks=st.integers(1000, 2**31 - 1),
    block_bytes=st.integers(1, 2**48),
    worker_id=worker_ids,
    incarnation=st.integers(0, 2**63 - 1).map(Incarnation),
    host=texts,
    token=texts,
    alternatives=st.lists(st.builds(KvDoor, names, texts, texts, texts), max_size=8).map(tuple),
    num_scratch_blocks=st.integers(0, 100),
    first_slice=st.integers(0, 1024),
    num_slices=st.integers(1, 9),
)
exports = st.builds(replace, pools, other_ranks=st.lists(pools, max_size=3).map(tuple))


@st.composite
def targets(draw: st.DrawFn) -> KvTarget:
    block_ids = draw(st.lists(st.integers(0, 99), unique=True, max_size=8))
    generations = draw(st.lists(uint64s, min_size=len(block_ids), max_size=len(block_ids)))
    return KvTarget(
        transfer_id=draw(names),
        export=draw(exports),
        block_ids=tuple(map(BlockId, block_ids)),
        generations=tuple(map(Generation, generations)),
        first_block_index=draw(counts),
    )


@st.composite
def admissions(draw: st.DrawFn) -> AdmitGeneration:
    num_blocks = draw(positive)
    return AdmitGeneration(
        draw(task_ids),
        draw(sequences),
        num_blocks,
        draw(st.integers(0, num_blocks)),
        draw(names),
        draw(texts),
    )


@st.composite
def emissions(draw: st.DrawFn) -> TokensEmitted:
    ids = draw(token_ids)
    tops = st.lists(st.tuples(counts, float32s), max_size=3).map(tuple)
    logprobs = st.builds(TokenLogprobs, logprob=float32s, top=tops)
    finish_reason = draw(st.sampled_from([None, "stop", "length"]))
    return TokensEmitted(
        task_id=draw(task_ids),
        first_token_index=draw(counts),
        token_ids=ids,
        text=draw(texts),
        logprobs=tuple(draw(logprobs) for _ in ids) if draw(st.booleans()) else (),
        finish_reason=finish_reason,
        matched_stop=draw(st.none() | texts | counts) if finish_reason == "stop" else None,
    )


commands: st.SearchStrategy[Command] = st.one_of(
    st.builds(StartPrefill, task_ids, sequences),
    st.builds(PushTo, task_ids, targets()),
    admissions(),
    st.builds(StartDecode, task_ids, st.lists(counts, min_size=1, max_size=8).map(tuple)),
    st.builds(GrantGrowth, task_ids, counts),
    st.builds(ResumeGeneration, task_ids, positive),
    st.builds(CancelTask, task_ids, texts),
)
durations = st.floats(0, 1e6)
reports: st.SearchStrategy[Report] = st.one_of(
    emissions(),
    st.builds(PrefillStarted, task_ids, counts),
    st.builds(KvPushed, task_ids, counts, st.integers(0, 2**63 - 1), durations, texts),
    st.builds(BlocksGranted, task_ids, targets()),
    st.builds(BlocksRefused, task_ids, counts),
    st.builds(DecodeStarted, task_ids, transport=texts),
    st.builds(GrowthNeeded, task_ids, positive),
    st.builds(Preempted, task_ids),
    st.builds(SwappedOut, task_ids, counts),
    st.builds(TaskFailed, task_ids, names, texts),
    st.builds(TaskReleased, task_ids),
)
loads = st.builds(
    WorkerLoad,
    counts,
    counts,
    counts,
    st.integers(0, 2**63 - 1),
    st.booleans(),
    num_parked=counts,
    num_swap_blocks=counts,
    num_free_swap_blocks=counts,
)
router_hellos = st.builds(RouterHello, counts, names.map(RouterId), incarnations, incarnations)
worker_hellos = st.builds(
    WorkerHello,
    counts,
    worker_ids,
    incarnations,
    st.sampled_from(["prefill", "decode"]),
    positive,
    positive,
    positive,
    texts,
    texts,
    st.none() | exports,
)
LOAD = WorkerLoad(1, 2, 3, 4)


def sent(message: pb.SessionRequest) -> pb.SessionRequest:
    return pb.SessionRequest.FromString(message.SerializeToString())


def answered(message: pb.SessionResponse) -> pb.SessionResponse:
    return pb.SessionResponse.FromString(message.SerializeToString())


@given(st.lists(commands, max_size=5))
def test_commands_arrive_as_they_were_sent(batch: list[Command]) -> None:
    assert decode_request(sent(encode_commands(batch))) == tuple(batch)


@pytest.mark.parametrize("due_in_s", [None, 2.5, 0.0, -1.0])
def test_a_load_tells_when_what_is_parked_goes_before_newcomers(due_in_s: float | None) -> None:
    (message,) = encode_reports([], replace(LOAD, num_parked=1, parked_due_in_s=due_in_s))
    frame = decode_response(answered(message))
    assert isinstance(frame, ReportBatch)
    assert frame.load.parked_due_in_s == due_in_s


@given(st.lists(reports, max_size=8), loads)
def test_reports_of_each_task_arrive_complete_and_in_order(
    batch: list[Report], load: WorkerLoad
) -> None:
    arrived: list[Report] = []
    for message in encode_reports(batch, load):
        frame = decode_response(answered(message))
        assert isinstance(frame, ReportBatch)
        assert frame.load == load
        arrived.extend(frame.reports)
    assert len(arrived) == len(batch)
    for task_id in {report.task_id for report in batch}:
        of_task = [report for report in batch if report.task_id == task_id]
        assert [report for report in arrived if report.task_id == task_id] == of_task


@given(router_hellos)
def test_the_hello_of_a_router_arrives_as_it_was_sent(hello: RouterHello) -> None:
    assert decode_request(sent(encode_router_hello(hello))) == hello


@given(exports)
def test_a_peer_arrives_as_it_was_announced(export: KvExport) -> None:
    assert decode_request(sent(encode_peer(export))) == export


@given(worker_hellos)
def test_the_hello_of_a_worker_arrives_as_it_was_sent(hello: WorkerHello) -> None:
    assert decode_response(answered(encode_worker_hello(hello))) == hello


@pytest.mark.parametrize("matched_stop", [None, "END", "", 7, 0])
def test_what_ended_an_answer_arrives_with_its_kind(matched_stop: str | int | None) -> None:
    end = TokensEmitted(TaskId("a/0"), 5, (7,), "x", (), "stop", matched_stop)
    (message,) = encode_reports([end], LOAD)
    assert decode_response(answered(message)) == ReportBatch((end,), LOAD)


def test_a_frame_without_reports_still_tells_the_load() -> None:
    (message,) = encode_reports([], LOAD)
    assert decode_response(answered(message)) == ReportBatch((), LOAD)
