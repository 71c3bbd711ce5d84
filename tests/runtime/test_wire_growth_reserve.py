"""A worker says how many of its blocks are for answers that grow."""

from dataclasses import replace

import pytest

from runtime.wire import ProtocolError, decode_response, encode_worker_hello
from scheduling.ids import Incarnation, WorkerId
from scheduling.messages import WorkerHello

HELLO = WorkerHello(2, WorkerId("w"), Incarnation(1), "decode", 64, 16, 8, "c", "m")


@pytest.mark.parametrize("number", [0, 7, 64])
def test_the_reserve_arrives_as_it_was_sent(number: int) -> None:
    hello = replace(HELLO, num_growth_blocks=number)
    assert decode_response(encode_worker_hello(hello)) == hello


@pytest.mark.parametrize(("role", "number"), [("decode", 4), ("prefill", 0)])
def test_a_worker_that_does_not_say_has_what_all_had_before(role: str, number: int) -> None:
    message = encode_worker_hello(replace(HELLO, role=role))
    message.hello.ClearField("num_growth_blocks")
    assert decode_response(message) == replace(HELLO, role=role, num_growth_blocks=number)


def test_no_worker_keeps_more_than_it_has() -> None:
    with pytest.raises(ProtocolError, match="num_growth_blocks"):
        decode_response(encode_worker_hello(replace(HELLO, num_growth_blocks=65)))
