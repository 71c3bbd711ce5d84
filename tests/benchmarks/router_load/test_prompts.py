"""The large prompts that are offered have the size that is reported."""

import pytest

from benchmarks.router_load.prompts import Kind, request_of, text_of
from tandemserve.api.v1 import inference_pb2 as pb


@pytest.mark.parametrize("kind", ["text", "ids"])
def test_a_prompt_takes_as_many_bytes_as_it_is_said_to(kind: Kind) -> None:
    message = request_of(100_000, kind)
    assert 0 <= len(message) - 100_000 < 32
    assert pb.GenerateRequest.FromString(message).WhichOneof("prompt") == {
        "text": "text",
        "ids": "tokens",
    }.get(kind)


def test_a_text_is_the_same_every_time() -> None:
    assert text_of(5000) == text_of(5000)
