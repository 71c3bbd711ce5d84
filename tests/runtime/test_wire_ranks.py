"""What a worker says of its ranks and of its start survives the wire, within bounds."""

from dataclasses import replace

import pytest

from router.testing import hello_of
from runtime.wire import decode_response, encode_worker_hello
from runtime.wire.values import MAX_RANKS, MAX_START_S, ProtocolError


@pytest.mark.parametrize(("num_ranks", "start_s"), [(1, 0.0), (4, 12.5), (MAX_RANKS, MAX_START_S)])
def test_ranks_and_start_come_as_they_were_sent(num_ranks: int, start_s: float) -> None:
    hello = replace(hello_of("decode-0"), num_ranks=num_ranks, start_s=start_s)
    assert decode_response(encode_worker_hello(hello)) == hello


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_ranks", MAX_RANKS + 1), ("start_s", -1.0), ("start_s", float("inf"))],
)
def test_what_cannot_be_is_refused(field: str, value: float) -> None:
    message = encode_worker_hello(hello_of("decode-0"))
    setattr(message.hello, field, value)
    with pytest.raises(ProtocolError, match=field):
        decode_response(message)


def test_an_older_worker_that_says_nothing_has_one_rank() -> None:
    message = encode_worker_hello(hello_of("decode-0"))
    message.hello.ClearField("num_ranks")
    decoded = decode_response(message)
    assert decoded == hello_of("decode-0")
