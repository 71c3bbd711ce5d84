"""Every method of every server, found by asking the servers, is sent what is no message.

That nothing of it leaves a traceback in a log is looked at when the cluster ends.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.local.cluster import LocalCluster
from tandemserve.api.v1 import admin_pb2, inference_pb2
from tandemserve.internal.v1 import worker_pb2

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

StartCluster = Callable[..., AbstractAsyncContextManager[LocalCluster]]
AssertEmpty = Callable[..., Awaitable[float]]
Until = Callable[..., Awaitable[float]]

PATIENCE_S = 120.0
MAX_MESSAGE_BYTES = 256 * 1024
INVALID = grpc.StatusCode.INVALID_ARGUMENT
# No method may answer so, whatever it is sent.
DEFECTS = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}
NOISE = {"cut tag": b"\xff", "cut field": b"\x0a\x7fab", "no wire type": b"\x0f\x01"}
LIMIT = {"max_message_bytes": str(MAX_MESSAGE_BYTES)}
GOOD = inference_pb2.GenerateRequest(
    text="a prompt",
    sampling=inference_pb2.SamplingParams(temperature=0.5, seed=2, logit_bias={7: 1.5}),
    stop=inference_pb2.StopConditions(max_tokens=2, strings=["x"]),
).SerializeToString()


@dataclass(frozen=True)
class Method:
    """Of one server, by its own description."""

    address: str
    name: str
    takes_stream: bool
    gives_stream: bool


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(
    start_cluster: StartCluster, model_folders: dict[str, Path]
) -> AsyncIterator[LocalCluster]:
    async with start_cluster(
        model_folders["llama"], num_decode=1, router=LIMIT, prefill=LIMIT, decode=LIMIT
    ) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def methods(cluster: LocalCluster) -> list[Method]:
    """Of the router and of every worker."""
    async with cluster.client() as client:
        addresses = [view.address for view in await client.admin.workers()]
    found = [await methods_of(address) for address in (cluster.endpoint, *addresses)]
    return [method for of_one in found for method in of_one]


async def methods_of(address: str) -> list[Method]:
    """What a server says it answers."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)

        async def asked(**question: str) -> Any:
            request = reflection_pb2.ServerReflectionRequest(**question)
            call = stub.ServerReflectionInfo(iter([request]), timeout=PATIENCE_S)
            return await call.read()

        listed = (await asked(list_services="")).list_services_response.service
        methods = []
        for service in [entry.name for entry in listed]:
            answer = (await asked(file_containing_symbol=service)).file_descriptor_response
            for content in answer.file_descriptor_proto:
                file = descriptor_pb2.FileDescriptorProto.FromString(content)
                methods += [
                    Method(
                        address,
                        f"/{service}/{method.name}",
                        method.client_streaming,
                        method.server_streaming,
                    )
                    for each in file.service
                    if f"{file.package}.{each.name}" == service
                    for method in each.method
                ]
    return methods


@asynccontextmanager
async def called(method: Method, message: bytes) -> AsyncIterator[Any]:
    """The call with this one message."""
    async with grpc.aio.insecure_channel(method.address) as channel:
        sides = (method.takes_stream, method.gives_stream)
        begin: Any = getattr(channel, "_".join("stream" if side else "unary" for side in sides))
        request = iter([message]) if method.takes_stream else message
        call = begin(method.name)(request, timeout=PATIENCE_S)
        try:
            yield call
        finally:
            call.cancel()


async def end_of(method: Method, message: bytes) -> tuple[grpc.StatusCode, str]:
    """How the call ends, OK where it is answered."""
    async with called(method, message) as call:
        try:
            await (call.read() if method.gives_stream else call)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK, ""


async def test_no_method_of_ours_is_left_out(methods: list[Method]) -> None:
    ours = {
        f"/{service.full_name}/{name}"
        for file in (inference_pb2, admin_pb2, worker_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for name in service.methods_by_name
    }
    assert ours <= {method.name for method in methods}
    # Health and reflection, at the router and at two workers.
    assert sum(method.name.startswith("/grpc.") for method in methods) >= 9


@pytest.mark.parametrize("noise", NOISE)
async def test_what_is_no_message_is_refused_by_every_method_in_the_same_words(
    cluster: LocalCluster, methods: list[Method], until: Until, noise: str
) -> None:
    before = lines_about_noise(cluster)
    for method in methods:
        code, said = await end_of(method, NOISE[noise])
        assert code is INVALID, method
        assert said == f"request: is no message of {method.name}; use a client of this API"

    async def is_told() -> bool:
        return lines_about_noise(cluster) - before >= len(methods)

    await until(is_told)
    assert lines_about_noise(cluster) - before == len(methods)


def lines_about_noise(cluster: LocalCluster) -> int:
    """In the logs of all processes."""
    logs = cluster.log_folder.glob("*.log")
    return sum(log.read_text("utf-8").count("malformed_message") for log in logs)


async def test_a_message_above_the_limit_is_refused_by_every_method(
    methods: list[Method],
) -> None:
    for method in methods:
        code, _ = await end_of(method, bytes(MAX_MESSAGE_BYTES + 1))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED, method


async def test_a_message_that_was_cut_short_is_no_defect(methods: list[Method]) -> None:
    (generate,) = [method for method in methods if method.name.endswith("/Generate")]
    for at in range(len(GOOD)):
        code, said = await end_of(generate, GOOD[:at])
        assert code in (INVALID, grpc.StatusCode.OK), (at, said)


async def test_whatever_bytes_are_sent_a_stream_beside_them_goes_on(
    cluster: LocalCluster, methods: list[Method], assert_empty: AssertEmpty
) -> None:
    parts = st.binary(max_size=60) | st.builds(
        lambda at, noise: GOOD[:at] + noise, st.integers(0, len(GOOD)), st.binary(max_size=8)
    )
    loop = asyncio.get_running_loop()

    async def ask_all(asked: list[tuple[int, bytes]]) -> None:
        for index, part in asked:
            method = methods[index % len(methods)]
            code, said = await end_of(method, part)
            assert code not in DEFECTS, (method, part, said)

    @settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
    @given(st.lists(st.tuples(st.integers(0, 1000), parts), min_size=1, max_size=10))
    def ask(asked: list[tuple[int, bytes]]) -> None:
        asyncio.run_coroutine_threadsafe(ask_all(asked), loop).result(PATIENCE_S)

    async with cluster.client() as client:
        expected = await client.generate([5, 6, 7], max_tokens=200, ignore_eos=True, seed=1)
        stream = client.stream([5, 6, 7], max_tokens=200, ignore_eos=True, seed=1)
        await anext(stream)
        await asyncio.to_thread(ask)
        assert (await stream.completion()).token_ids == expected.token_ids
        assert all(view.state == "ready" for view in await client.admin.workers())
    await assert_empty(cluster)
