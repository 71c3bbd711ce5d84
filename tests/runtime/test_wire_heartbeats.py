"""Signs of life between router and worker, as they travel."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.wire import (
    Heartbeat,
    HeartbeatAnswer,
    ProtocolError,
    RouterHello,
    decode_request,
    decode_response,
    encode_heartbeat,
    encode_heartbeat_answer,
    encode_router_hello,
)
from scheduling.ids import Incarnation, RouterId

uint64s = st.integers(0, 2**64 - 1)


@given(uint64s, uint64s, st.floats(0, 1e9))
def test_heartbeats_and_their_answers_arrive_as_they_were_sent(
    number: int, num_turns: int, turn_s: float
) -> None:
    heartbeat, answer = Heartbeat(number), HeartbeatAnswer(number, num_turns, turn_s)
    assert decode_request(encode_heartbeat(heartbeat)) == heartbeat
    assert decode_response(encode_heartbeat_answer(answer)) == answer


def test_a_router_says_how_long_it_may_be_silent() -> None:
    hello = RouterHello(2, RouterId("r"), Incarnation(1), Incarnation(2), 9, 3.5)
    assert decode_request(encode_router_hello(hello)) == hello
    negative = encode_router_hello(hello)
    negative.hello.heartbeat_timeout_s = -1.0
    with pytest.raises(ProtocolError, match="heartbeat_timeout_s"):
        decode_request(negative)
