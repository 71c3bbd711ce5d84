"""How far a worker's model of its passes is off, on its way to the routers."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.wire import ProtocolError, ReportBatch, decode_response, encode_reports
from scheduling.batch_time_online import PassTimeError
from scheduling.messages import WorkerLoad
from tandemserve.internal.v1 import worker_pb2 as pb

LOAD = WorkerLoad(1, 2, 3, 4)
errors = st.floats(0, 1e9)


def answered(message: pb.SessionResponse) -> pb.SessionResponse:
    return pb.SessionResponse.FromString(message.SerializeToString())


@given(st.none() | st.builds(PassTimeError, st.integers(0, 2**63 - 1), errors, errors))
def test_it_arrives_as_it_was_told(error: PassTimeError | None) -> None:
    (message,) = encode_reports([], replace(LOAD, pass_time_error=error))
    frame = decode_response(answered(message))
    assert isinstance(frame, ReportBatch)
    # Not by comparing loads: it decides nothing, so it makes no difference to them.
    assert frame.load.pass_time_error == error
    assert frame.load == LOAD


@pytest.mark.parametrize(
    ("error", "field"),
    [
        (pb.PassTimeError(median=math.nan), "median"),
        (pb.PassTimeError(median=-1), "median"),
        (pb.PassTimeError(p90=math.inf), "p90"),
        (pb.PassTimeError(num_passes=2**63), "num_passes"),
    ],
)
def test_what_is_no_error_is_refused_by_the_name_of_its_field(
    error: pb.PassTimeError, field: str
) -> None:
    load = pb.WorkerLoad(admission=pb.WORKER_ADMISSION_OPEN, pass_time_error=error)
    with pytest.raises(ProtocolError) as caught:
        decode_response(answered(pb.SessionResponse(reports=pb.ReportFrame(load=load))))
    assert field in caught.value.field
