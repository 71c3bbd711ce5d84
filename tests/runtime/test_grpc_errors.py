"""Every domain error has a status, and the status says what the caller can do."""

import grpc
from google.rpc import error_details_pb2  # type: ignore[import-untyped] # it ships no stubs

from runtime.grpc_errors import ERROR_DOMAIN, STATUS_BY_CODE, status_of
from runtime.testing import captured_log
from scheduling import errors
from scheduling.errors import InvalidRequest, QueueFull, TandemError


def all_domain_errors() -> set[type[TandemError]]:
    return {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, TandemError)
    }


def info_of(error: Exception, *, gpu_work_spent: bool = False) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    assert status_of(error, gpu_work_spent=gpu_work_spent).details[0].Unpack(info)
    return info


def test_the_table_has_exactly_the_codes_of_the_domain() -> None:
    assert {kind.code for kind in all_domain_errors()} == STATUS_BY_CODE.keys()


def test_retry_is_promised_exactly_where_the_domain_calls_it_useful() -> None:
    for kind in all_domain_errors():
        assert (STATUS_BY_CODE[kind.code].retry_after_s is not None) == kind.retryable, kind


def test_a_status_names_the_reason_and_whether_work_was_spent() -> None:
    status = status_of(QueueFull("full; try later", retry_after_s=2.5), gpu_work_spent=True)
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert status.message == "full; try later"
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(retry)
    assert (info.reason, info.domain) == ("queue_full", ERROR_DOMAIN)
    assert info.metadata["gpu_work_spent"] == "true"
    assert retry.retry_delay.ToTimedelta().total_seconds() == 2.5


def test_a_refused_field_is_named_in_the_details() -> None:
    info = info_of(InvalidRequest("sampling.top_p", "must be above 0"))
    assert info.metadata["field"] == "sampling.top_p"
    assert info.metadata["gpu_work_spent"] == "false"


def test_a_foreign_error_shows_an_incident_and_is_logged_under_it() -> None:
    with captured_log() as log:
        status = status_of(ValueError("secret detail of the inside"))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert status.code == grpc.StatusCode.INTERNAL.value[0]
    assert "secret detail" not in str(status)
    incident = info.metadata["incident"]
    assert incident in status.message
    (line,) = log.lines
    assert (line["event"], line["incident"]) == ("internal_error", incident)
    assert "secret detail" in line["exception"]


def test_a_very_long_message_is_cut_to_fit_into_headers() -> None:
    assert len(status_of(InvalidRequest("model", "x" * 100_000)).message) == 1000
