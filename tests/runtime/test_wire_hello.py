"""A worker says how much one of its iterations holds, and by which policy it decides."""

from dataclasses import replace

import pytest

from runtime.wire import ProtocolError, decode_response, encode_worker_hello
from scheduling.ids import Incarnation, WorkerId
from scheduling.messages import WorkerHello

HELLO = WorkerHello(
    2,
    WorkerId("w"),
    Incarnation(1),
    "mixed",
    64,
    16,
    8,
    "c",
    "m",
    max_num_batched_tokens=8192,
    policy="default+victims=last-arrived",
    traits=("KV dtype=bfloat16", "block size=16"),
)


def test_what_a_worker_decides_by_arrives_as_it_was_sent() -> None:
    assert decode_response(encode_worker_hello(HELLO)) == HELLO


def test_an_older_worker_tells_neither() -> None:
    message = encode_worker_hello(HELLO)
    message.hello.ClearField("max_num_batched_tokens")
    message.hello.ClearField("policy")
    message.hello.ClearField("traits")
    older = replace(HELLO, max_num_batched_tokens=0, policy="", traits=())
    assert decode_response(message) == older


@pytest.mark.parametrize("trait", ["weights=a\nb", "w=\x1b[2J", "w=\u202e", "w=\U0001f600"])
def test_what_two_workers_must_share_fits_on_a_line_and_takes_no_more_room_than_it_seems(
    trait: str,
) -> None:
    with pytest.raises(ProtocolError, match="traits"):
        decode_response(encode_worker_hello(replace(HELLO, traits=(trait,))))


def test_what_two_workers_must_share_is_bounded() -> None:
    for traits in (("a=b",) * 65, ("",), ("x" * 600,)):
        with pytest.raises(ProtocolError, match="traits"):
            decode_response(encode_worker_hello(replace(HELLO, traits=traits)))


@pytest.mark.parametrize("policy", ["x" * 4097, "default\nworker_lost", "d\x1b[2J"])
def test_the_name_of_a_policy_fits_on_a_line(policy: str) -> None:
    with pytest.raises(ProtocolError, match="policy"):
        decode_response(encode_worker_hello(replace(HELLO, policy=policy)))
