"""The load generator's own HTTP/2, against a real gRPC server."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from benchmarks.router_load.client import Load, LoadClient
from tandemserve.api.v1 import inference_pb2 as pb
from tandemserve.api.v1 import inference_pb2_grpc

PATIENCE_S = 10.0


class FakeInference(inference_pb2_grpc.InferenceServiceServicer):
    """Streams as many tokens as were asked for; three are too many, four end in one message."""

    def Generate(  # noqa: N802 - the name is given by the protocol
        self, request: Any, context: Any
    ) -> Iterator[pb.GenerateResponse]:
        if request.stop.max_tokens == 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "as the test wants it")
        yield pb.GenerateResponse(accepted=pb.RequestAccepted(model="fake"))
        for index in range(request.stop.max_tokens):
            # One longer than a frame of HTTP/2, so that it comes in parts.
            delta = pb.Delta(first_token_index=index, token_ids=[5], text="x" * 20_000 * index)
            response = pb.GenerateResponse(delta=delta)
            if index == 3 and request.joins_events:
                response.following.add(finished=pb.ChoiceFinished())
            yield response
        if request.stop.max_tokens != 4:
            yield pb.GenerateResponse(finished=pb.ChoiceFinished())

    ListModels = GetModelInfo = Tokenize = None  # type: ignore[assignment]  # nobody calls them


@pytest.fixture
def port() -> Iterator[int]:
    server = grpc.server(ThreadPoolExecutor(8))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(FakeInference(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait(PATIENCE_S)


def run(port: int, load: Load, num_requests: int) -> LoadClient:
    client = LoadClient(port, load)
    client.run_until(time.perf_counter() + PATIENCE_S, num_requests)
    client.close()
    return client


@pytest.mark.parametrize("load", [Load(1, 1), Load(8, 2), Load(8, 4, is_tokenised=True)])
def test_every_call_is_answered_and_every_token_counted(port: int, load: Load) -> None:
    tally = run(port, load, 20).tally
    assert tally.num_requests >= 20
    assert tally.num_failed == 0
    assert tally.num_tokens >= tally.num_requests * load.num_tokens
    assert len(tally.latency_s) == tally.num_requests
    assert len(tally.ttft_s) >= tally.num_requests
    assert all(0 < ttft_s <= PATIENCE_S for ttft_s in tally.ttft_s)


def test_a_call_that_fails_is_counted_as_failed(port: int) -> None:
    tally = run(port, Load(4, 3), 8).tally
    assert tally.num_failed == tally.num_requests >= 8
    assert tally.num_tokens == 0


def test_calls_of_a_given_rate_do_not_follow_at_once(port: int) -> None:
    began_at_s = time.perf_counter()
    run(port, Load(4, 1, interval_s=0.02), 6)
    assert time.perf_counter() - began_at_s >= 5 * 0.02
