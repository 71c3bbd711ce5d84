"""Messages that no router and no worker sends, each refused by the name of its field."""

import math
from typing import Any

import pytest

from runtime.wire import (
    ProtocolError,
    decode_request,
    decode_response,
)
from tandemserve.internal.v1 import kv_export_pb2, sequence_pb2
from tandemserve.internal.v1 import worker_pb2 as pb

NEVER_DUE = pb.WorkerLoad(admission=pb.WORKER_ADMISSION_OPEN, parked_due_in_s=math.nan)


def good_sequence(**changes: Any) -> sequence_pb2.SequenceSpec:
    fields: dict[str, Any] = {
        "prompt_token_ids": [1],
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 1,
    }
    return sequence_pb2.SequenceSpec(**(fields | changes))


def good_target(**changes: Any) -> dict[str, Any]:
    export = kv_export_pb2.KvExport(transport="t", num_blocks=4, block_bytes=1, worker_id="w")
    fields: dict[str, Any] = {
        "transfer_id": "x",
        "export": export,
        "block_ids": [0, 3],
        "generations": [1, 1],
    }
    return fields | changes


def sliced_pool(**changes: Any) -> kv_export_pb2.KvExport:
    fields: dict[str, Any] = {"transport": "t", "num_blocks": 4, "block_bytes": 1, "worker_id": "w"}
    return kv_export_pb2.KvExport(**(fields | changes))


def huge_blocks() -> kv_export_pb2.KvExport:
    return kv_export_pb2.KvExport(transport="t", num_blocks=4, block_bytes=2**48 + 1, worker_id="w")


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
        (
            a_push(export=kv_export_pb2.KvExport(transport="t", block_bytes=1, worker_id="w")),
            "num_blocks",
        ),
        (a_push(export=huge_blocks()), "block_bytes"),
        (a_push(export=sliced_pool(num_slices=1025)), "num_slices"),
        (a_push(export=sliced_pool(first_slice=1025)), "first_slice"),
        # Two blocks of two slices each; the target names block 3.
        (a_push(export=sliced_pool(num_slices=2)), "block_ids"),
        (a_push(export=sliced_pool(other_ranks=[sliced_pool()] * 64)), "other_ranks"),
        (
            a_push(export=sliced_pool(other_ranks=[sliced_pool(other_ranks=[sliced_pool()])])),
            "other_ranks",
        ),
        (a_push(export=sliced_pool(other_ranks=[sliced_pool(num_blocks=0)])), "num_blocks"),
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
        decode_request(pb.SessionRequest.FromString(message.SerializeToString()))
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
        decode_response(pb.SessionResponse.FromString(message.SerializeToString()))
    assert field in caught.value.field
