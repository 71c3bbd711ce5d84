"""What a caller wishes of its answers, from the call to the core."""

from typing import Any

import pytest

from engine.bundled import bundled_model_path
from router.events import Event, RequestArrived
from router.inference import InferenceService
from router.served_model import PromptEncoder, load_served_model
from router.streams import StreamBook
from router.testing import CoreUnderTest, GoneCaller
from scheduling.goals import Goals
from tandemserve.api.v1 import inference_pb2 as pb


@pytest.mark.parametrize(
    ("wishes", "goals"),
    [
        ({}, Goals(1.0, 0.1)),
        ({"tpot_ms": 50}, Goals(1.0, 0.05)),
        ({"jct_ms": 6000}, Goals(6.0, 6.0, 6.0)),
        ({"ttft_ms": 500, "jct_ms": 6000}, Goals(0.5, 6.0, 6.0)),
        ({"tbt_ms": 50}, Goals(1.0, 0.05, tbt_s=0.05)),
        ({"tbt_ms": 300}, Goals(1.0, 0.1, tbt_s=0.3)),
        ({"tbt_ms": 300, "jct_ms": 6000}, Goals(6.0, 0.3, 6.0, 0.3)),
    ],
)
async def test_what_is_not_named_is_usual_or_left_to_the_end(
    wishes: dict[str, float], goals: Goals
) -> None:
    model = load_served_model(bundled_model_path(), "demo", max_chars=10_000)
    encoder, events = PromptEncoder(model, num_threads=1), list[Event]()
    usual = {name: Goals(1.0, 0.1) for name in ("interactive", "standard", "batch")}
    core = CoreUnderTest().core
    # Called as gRPC does, with what stands for its context.
    service: Any = InferenceService(model, encoder, core, StreamBook(), events.append, usual)
    request = pb.GenerateRequest(
        request_id="r",
        tokens=pb.TokenPrompt(ids=[5, 6]),
        service_level=pb.ServiceLevel(**wishes),
    )
    try:
        responses = service.Generate(None, GoneCaller(request.SerializeToString()))
        assert (await anext(responses)).HasField("accepted")
        await responses.aclose()
    finally:
        encoder.close()
    (arrived,) = (event for event in events if isinstance(event, RequestArrived))
    assert arrived.spec.goals == goals
    assert arrived.spec.deadline_s is None
