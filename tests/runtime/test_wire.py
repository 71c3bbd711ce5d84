"""Round trips of every message, and a named error for everything a bad peer could send."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.wire import (
    ProtocolError,
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

NEVER_DUE = pb.WorkerLoad(admission=pb.WORKER_ADMISSION_OPEN, parked_due_in_s=math.nan)
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
exports = st.builds(
    KvExport,
    transport=names,
    address=texts,
    num_blocks=st.integers(100, 2**31 - 1),
    block_bytes=st.integers(1, 2**48),
    worker_id=worker_ids,
    incarnation=st.integers(0, 2**63 - 1).map(Incarnation),
    host=texts,
    token=texts,
    alternatives=st.lists(st.builds(KvDoor, names, texts, texts, texts), max_size=8).map(tuple),
    num_scratch_blocks=st.integers(0, 100),
)


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


def good_sequence(**changes: Any) -> pb.SequenceSpec:
    fields: dict[str, Any] = {
        "prompt_token_ids": [1],
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 1,
    }
    return pb.SequenceSpec(**(fields | changes))


def good_target(**changes: Any) -> dict[str, Any]:
    export = pb.KvExport(transport="t", num_blocks=4, block_bytes=1, worker_id="w")
    fields: dict[str, Any] = {
        "transfer_id": "x",
        "export": export,
        "block_ids": [0, 3],
        "generations": [1, 1],
    }
    return fields | changes


def huge_blocks() -> pb.KvExport:
    return pb.KvExport(transport="t", num_blocks=4, block_bytes=2**48 + 1, worker_id="w")


def a_command(**fields: Any) -> pb.SessionRequest:
    command = pb.Command(**({"task_id": "a/0"} | fields))
    return pb.SessionRequest(commands=pb.CommandFrame(commands=[command]))


def a_prefill(**changes: Any) -> pb.SessionRequest:
    return a_command(start_prefill=pb.StartPrefill(sequence=good_sequence(**changes)))


def a_push(**changes: Any) -> pb.SessionRequest:
    return a_command(push_to=pb.PushTo(**good_target(**changes)))


def an_admission(**fields: Any) -> pb.SessionRequest:
    defaults: dict[str, Any] = {"sequence": good_sequence(), "num_blocks": 2, "transfer_id": "x"}
    return a_command(admit_generation=pb.AdmitGeneration(**(defaults | fields)))


@pytest.mark.parametrize("message", [a_prefill(), a_push(), an_admission()])
def test_the_messages_that_the_bad_ones_are_made_from_are_good(message: Any) -> None:
    decode_request(message)


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.SessionRequest(), "frame"),
        (a_command(), "command"),
        (a_command(task_id="", cancel=pb.CancelTask()), "task_id"),
        (a_command(task_id="x" * 600, cancel=pb.CancelTask()), "task_id"),
        (a_command(start_prefill=pb.StartPrefill()), "sequence"),
        (a_prefill(prompt_token_ids=[]), "prompt_token_ids"),
        (a_prefill(prompt_token_ids=[2**31]), "prompt_token_ids"),
        (a_prefill(temperature=math.nan), "temperature"),
        (a_prefill(temperature=math.inf), "temperature"),
        (a_prefill(temperature=-1), "temperature"),
        (a_prefill(top_p=0), "top_p"),
        (a_prefill(top_p=1.5), "top_p"),
        (a_prefill(top_p=math.nan), "top_p"),
        (a_prefill(top_k=2**31), "top_k"),
        (a_prefill(max_tokens=0), "max_tokens"),
        (a_prefill(num_logprobs=21), "num_logprobs"),
        (a_prefill(stop_strings=[""]), "stop_strings"),
        (a_prefill(stop_strings=["x"] * 65), "stop_strings"),
        (a_push(export=None), "export"),
        (a_push(export=pb.KvExport(transport="t", block_bytes=1, worker_id="w")), "num_blocks"),
        (a_push(export=huge_blocks()), "block_bytes"),
        (a_push(transfer_id=""), "transfer_id"),
        (a_push(generations=[1]), "generations"),
        (a_push(block_ids=[0, 4]), "block_ids"),
        (a_push(block_ids=[3, 3]), "block_ids"),
        (an_admission(num_blocks=0), "num_blocks"),
        (an_admission(num_kv_blocks=3), "num_kv_blocks"),
        (a_command(start_decode=pb.StartDecode()), "output_token_ids"),
        (pb.SessionRequest(hello=pb.RouterHello()), "router_id"),
    ],
)
def test_a_bad_request_is_refused_by_the_name_of_its_field(
    message: pb.SessionRequest, field: str
) -> None:
    with pytest.raises(ProtocolError, match="check that all processes run one version") as caught:
        decode_request(sent(message))
    assert field in caught.value.field


def a_frame(**fields: Any) -> pb.SessionResponse:
    return pb.SessionResponse(reports=pb.ReportFrame(**({"load": pb.WorkerLoad()} | fields)))


def a_report(**fields: Any) -> pb.SessionResponse:
    return a_frame(reports=[pb.Report(**({"task_id": "a/0"} | fields))])


def a_token(**fields: Any) -> pb.SessionResponse:
    return a_frame(tokens=[pb.TokenReport(**({"task_id": "a/0", "token_ids": [1]} | fields))])


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.SessionResponse(), "frame"),
        (pb.SessionResponse(reports=pb.ReportFrame()), "load"),
        (a_frame(load=pb.WorkerLoad(num_free_blocks=2**31)), "num_free_blocks"),
        (a_frame(load=NEVER_DUE), "parked_due_in_s"),
        (a_report(), "report"),
        (a_report(task_id="", released=pb.TaskReleased()), "task_id"),
        (a_report(kv_pushed=pb.KvPushed(copy_s=math.nan)), "copy_s"),
        (a_report(kv_pushed=pb.KvPushed(copy_s=-1)), "copy_s"),
        (a_report(kv_pushed=pb.KvPushed(num_bytes=2**63)), "num_bytes"),
        (a_report(growth_needed=pb.GrowthNeeded()), "num_blocks"),
        (a_report(failed=pb.TaskFailed()), "code"),
        (a_report(blocks_granted=pb.BlocksGranted(**good_target(block_ids=[9, 1]))), "block_ids"),
        (a_token(task_id=""), "task_id"),
        (a_token(finish_reason="tired"), "finish_reason"),
        (a_token(token_ids=[2**32 - 1]), "token_ids"),
        (a_token(logprobs=[pb.TokenLogprobs(), pb.TokenLogprobs()]), "logprobs"),
        (a_token(logprobs=[pb.TokenLogprobs(logprob=math.nan)]), "logprob"),
        (a_token(logprobs=[pb.TokenLogprobs(top_token_ids=[1])]), "top_logprobs"),
        (a_token(matched_string="x", matched_token_id=1), "matched_token_id"),
        (pb.SessionResponse(hello=pb.WorkerHello(role="oracle")), "role"),
        (pb.SessionResponse(hello=pb.WorkerHello(role="decode")), "worker_id"),
        (
            pb.SessionResponse(hello=pb.WorkerHello(role="decode", worker_id="w", num_blocks=1)),
            "block_size",
        ),
    ],
)
def test_a_bad_response_is_refused_by_the_name_of_its_field(
    message: pb.SessionResponse, field: str
) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_response(answered(message))
    assert field in caught.value.field
