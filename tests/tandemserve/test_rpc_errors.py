"""From a gRPC status, with or without details, to one exception."""

import grpc
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from tandemserve import errors
from tandemserve.rpc_errors import error_from_rpc


class Failure:
    """A failed call as both gRPC flavours show it."""

    def __init__(
        self,
        status: grpc.StatusCode,
        text: str | None = "",
        metadata: tuple[tuple[str, str | bytes], ...] | None = None,
    ) -> None:
        self._status, self.own_text, self._metadata = status, text, metadata

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str | None:
        return self.own_text

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...] | None:
        return self._metadata


def detailed(
    status: grpc.StatusCode, reason: str, domain: str = "tandemserve", **metadata: str
) -> Failure:
    packed = [any_pb2.Any(), any_pb2.Any()]
    packed[0].Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata))
    delay = duration_pb2.Duration(seconds=2, nanos=500_000_000)
    packed[1].Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    content = status_pb2.Status(code=status.value[0], message="m", details=packed)
    return Failure(status, "m", (("grpc-status-details-bin", content.SerializeToString()),))


@pytest.mark.parametrize("code", sorted(errors.error_class_by_code()))
def test_the_code_decides(code: str) -> None:
    error = error_from_rpc(
        detailed(grpc.StatusCode.INTERNAL, code, gpu_work_spent="true"), target="t"
    )
    assert type(error) is errors.error_class_by_code()[code]
    assert error.code == code
    assert error.gpu_work_spent is True
    assert error.retry_after_s == 2.5
    assert error.message == "m"


@pytest.mark.parametrize(
    ("status", "error_class"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.ALREADY_EXISTS, errors.DuplicateRequest),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.CanNeverFit),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.LimitExceeded),
        (grpc.StatusCode.UNAVAILABLE, errors.ConnectionFailed),
        (grpc.StatusCode.CANCELLED, errors.ConnectionFailed),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, errors.PermissionDenied),
        (grpc.StatusCode.UNIMPLEMENTED, errors.NotSupported),
        (grpc.StatusCode.INTERNAL, errors.InternalFailure),
        (grpc.StatusCode.UNKNOWN, errors.InternalFailure),
    ],
)
def test_without_details_the_status_decides(
    status: grpc.StatusCode, error_class: type[errors.TandemError]
) -> None:
    error = error_from_rpc(Failure(status, None), target="h:1", request_id="r")
    assert type(error) is error_class
    assert error.message.startswith(f"h:1: {status.name}")
    assert error.gpu_work_spent is None
    assert error.request_id == "r"


def test_a_deadline_that_passed_on_this_side_is_told_in_our_words() -> None:
    failure = Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "Stream removed (Deadline Exceeded)")
    error = error_from_rpc(failure, target="h:1")
    assert error.message == (
        "h:1: no complete answer in time; raise timeout_s, or ask for fewer tokens"
    )


def test_what_the_server_told_is_kept_when_grpc_puts_its_own_words_in_front_of_it() -> None:
    failure = detailed(grpc.StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded")
    failure.own_text = "Stream removed (Deadline Exceeded)"
    error = error_from_rpc(failure, target="t")
    assert type(error) is errors.DeadlineExceeded
    assert error.message == "m"


def test_a_code_of_a_later_version_falls_back_to_the_status() -> None:
    error = error_from_rpc(detailed(grpc.StatusCode.UNAVAILABLE, "moon_phase"), target="t")
    assert type(error) is errors.ConnectionFailed


def test_details_of_another_domain_are_not_ours() -> None:
    failure = detailed(grpc.StatusCode.PERMISSION_DENIED, "queue_full", domain="proxy.example")
    assert type(error_from_rpc(failure, target="t")) is errors.PermissionDenied


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff", b"\x1a\x02\x0a\x7f"])
def test_unreadable_details_are_ignored(garbage: bytes) -> None:
    failure = Failure(grpc.StatusCode.UNAVAILABLE, "x", (("grpc-status-details-bin", garbage),))
    assert type(error_from_rpc(failure, target="t")) is errors.ConnectionFailed


def test_a_message_is_always_one_line() -> None:
    error = error_from_rpc(Failure(grpc.StatusCode.INTERNAL, "a\n  b\tc"), target="t")
    assert error.message.startswith("t: a b c; ")
