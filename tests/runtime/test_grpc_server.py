"""Servers and channels as peers see them: health, reflection, tokens, TLS, limits, the port."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from runtime.errors import StartupError
from runtime.grpc_errors import DETAILS_KEY, abort_with
from runtime.grpc_server import (
    BoundServer,
    ServerOptions,
    TlsFiles,
    build_channel,
    build_server,
)
from scheduling.errors import QueueFull

SERVICE = "tandemserve.internal.v1.WorkerService"
ECHO = "/test.Echo/Say"
TIMEOUT_S = 60.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

Answer = Callable[[bytes, Any], Awaitable[bytes]]


async def echo(request: bytes, _: Any) -> bytes:
    return request


@asynccontextmanager
async def running(answer: Answer = echo, **options: Any) -> AsyncIterator[BoundServer]:
    bound = build_server(ServerOptions("127.0.0.1", 0, **options), [SERVICE])
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(answer)
    generic = grpc.method_handlers_generic_handler("test.Echo", {"Say": handler})
    bound.server.add_generic_rpc_handlers((generic,))
    await bound.start()
    try:
        yield bound
    finally:
        await bound.stop(grace_s=0)


async def say(channel: grpc.aio.Channel, request: bytes = b"hi", **options: Any) -> bytes:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(ECHO)
    answer: bytes = await call(request, timeout=TIMEOUT_S, **options)
    return answer


async def health_of(channel: grpc.aio.Channel, service: str) -> Any:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=service)
    return (await stub.Check(request, timeout=TIMEOUT_S)).status


async def test_liveness_serves_from_the_start_and_readiness_when_told() -> None:
    async with running() as bound, build_channel(f"127.0.0.1:{bound.port}") as channel:
        assert await health_of(channel, "") == SERVING
        assert await health_of(channel, SERVICE) == NOT_SERVING
        bound.health.set_ready(SERVICE, True)
        assert await health_of(channel, SERVICE) == SERVING
        bound.health.set_ready(SERVICE, False)
        assert await health_of(channel, SERVICE) == NOT_SERVING


async def test_an_unknown_service_has_no_health() -> None:
    async with running() as bound, build_channel(f"127.0.0.1:{bound.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health_of(channel, "nobody")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
        with pytest.raises(KeyError):
            bound.health.set_ready("nobody", True)


async def test_every_watcher_sees_every_lasting_change_after_another_left() -> None:
    async with running() as bound, build_channel(f"127.0.0.1:{bound.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=SERVICE)
        stays, leaves = stub.Watch(request), stub.Watch(request)
        assert (await asyncio.wait_for(leaves.read(), TIMEOUT_S)).status == NOT_SERVING
        assert (await asyncio.wait_for(stays.read(), TIMEOUT_S)).status == NOT_SERVING
        leaves.cancel()
        bound.health.set_ready(SERVICE, True)
        assert (await asyncio.wait_for(stays.read(), TIMEOUT_S)).status == SERVING
        bound.health.close()
        assert (await asyncio.wait_for(stays.read(), TIMEOUT_S)).status == NOT_SERVING
        assert await asyncio.wait_for(stays.read(), TIMEOUT_S) is grpc.aio.EOF


async def test_a_watcher_of_an_unknown_service_is_told_so() -> None:
    async with running() as bound, build_channel(f"127.0.0.1:{bound.port}") as channel:
        request = health_pb2.HealthCheckRequest(service="nobody")
        watch = health_pb2_grpc.HealthStub(channel).Watch(request)
        assert (await asyncio.wait_for(watch.read(), TIMEOUT_S)).status == SERVICE_UNKNOWN


async def test_once_closed_health_stays_not_serving() -> None:
    async with running() as bound, build_channel(f"127.0.0.1:{bound.port}") as channel:
        bound.health.set_ready(SERVICE, True)
        bound.health.close()
        bound.health.set_ready(SERVICE, True)
        assert await health_of(channel, SERVICE) == NOT_SERVING
        assert await health_of(channel, "") == SERVING


async def reflected_services(channel: grpc.aio.Channel, **options: Any) -> set[str]:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    async for response in stub.ServerReflectionInfo(iter([request]), timeout=TIMEOUT_S, **options):
        return {service.name for service in response.list_services_response.service}
    return set()


async def test_reflection_lists_the_services() -> None:
    async with running() as bound, build_channel(f"127.0.0.1:{bound.port}") as channel:
        assert {SERVICE, "grpc.health.v1.Health"} <= await reflected_services(channel)


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", "Bearer wrong"),),
        (("authorization", "s3cret"),),
        (("authorization", ""),),
        (("authorization-bin", b"Bearer s3cret"),),
    ],
)
async def test_a_call_without_the_token_is_refused(metadata: Any) -> None:
    async with (
        running(auth_token="s3cret") as bound,
        build_channel(f"127.0.0.1:{bound.port}") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(channel, metadata=metadata)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert "Bearer <token>" in (caught.value.details() or "")
        with pytest.raises(grpc.aio.AioRpcError):
            await reflected_services(channel, metadata=metadata)


async def test_a_call_with_the_token_and_health_without_it_pass() -> None:
    async with (
        running(auth_token="s3cret") as bound,
        build_channel(f"127.0.0.1:{bound.port}") as channel,
    ):
        assert await say(channel, metadata=(("authorization", "Bearer s3cret"),)) == b"hi"
        assert await health_of(channel, SERVICE) == NOT_SERVING


async def test_a_taken_port_is_an_error_that_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartupError, match=rf"port {port} is taken; .*set another port"):
            build_server(ServerOptions("127.0.0.1", port), [])


async def test_a_port_that_is_taken_on_one_address_of_a_name_is_taken() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(StartupError, match="is taken"),
    ):
        build_server(ServerOptions("localhost", taken.getsockname()[1]), [])


async def test_two_servers_never_share_a_port() -> None:
    async with running() as bound:
        with pytest.raises(StartupError, match="is taken"):
            build_server(ServerOptions("127.0.0.1", bound.port), [])
        with socket.socket() as sharer:
            sharer.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="in use"):
                sharer.bind(("127.0.0.1", bound.port))


@pytest.mark.parametrize(
    ("host", "problem"),
    [
        ("192.0.2.1", "host 192.0.2.1 is not an address of this machine"),
        ("no-such-host.invalid", "host no-such-host.invalid is unknown"),
    ],
)
async def test_a_host_that_is_not_ours_is_named(host: str, problem: str) -> None:
    with pytest.raises(StartupError, match=problem):
        build_server(ServerOptions(host, 0), [])


async def test_a_message_above_the_limit_is_refused_and_the_server_goes_on() -> None:
    limit = 100_000
    async with (
        running(max_message_bytes=limit) as bound,
        build_channel(f"127.0.0.1:{bound.port}") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(channel, b"x" * (limit + 1))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(await say(channel, b"x" * limit)) == limit


async def test_messages_far_above_the_default_of_grpc_pass() -> None:
    async with running() as bound, build_channel(f"127.0.0.1:{bound.port}") as channel:
        assert len(await say(channel, bytes(20 * 1024 * 1024))) == 20 * 1024 * 1024


async def test_a_domain_error_reaches_the_caller_with_its_details() -> None:
    async def refuse(_: bytes, context: Any) -> bytes:
        await abort_with(context, QueueFull("full; try later"), gpu_work_spent=True)

    async with running(refuse) as bound, build_channel(f"127.0.0.1:{bound.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await say(channel)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "full; try later"
        assert b"queue_full" in dict(caught.value.trailing_metadata())[DETAILS_KEY]


async def test_stop_lets_a_running_call_finish() -> None:
    entered, leave = asyncio.Event(), asyncio.Event()

    async def answer_later(request: bytes, _: Any) -> bytes:
        entered.set()
        await leave.wait()
        return request

    async with running(answer_later) as bound, build_channel(f"127.0.0.1:{bound.port}") as channel:
        call = asyncio.create_task(say(channel))
        await asyncio.wait_for(entered.wait(), TIMEOUT_S)
        stopping = asyncio.create_task(bound.stop(grace_s=TIMEOUT_S))
        leave.set()
        assert await call == b"hi"
        await asyncio.wait_for(stopping, TIMEOUT_S)


async def test_a_channel_reaches_a_peer_that_came_back_on_its_port() -> None:
    async with running() as first:
        port = first.port
        channel = build_channel(f"127.0.0.1:{port}")
        assert await say(channel) == b"hi"
    async with running(echo) as second:
        assert second.port  # keeps the old port from being handed out to it
        again = build_server(ServerOptions("127.0.0.1", port), [])
        await again.start()
        stub = health_pb2_grpc.HealthStub(channel)
        check = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S, wait_for_ready=True)
        assert (await check).status == SERVING
        await channel.close()
        await again.stop(grace_s=0)


class Authority:
    """A certificate authority with a server and a client certificate on disk."""

    def __init__(self, folder: Path) -> None:
        authority = trustme.CA()
        server = authority.issue_cert("localhost")
        client = authority.issue_cert("client.test")
        self.root = authority.cert_pem.bytes()
        self.client_key = client.private_key_pem.bytes()
        self.client_cert = client.cert_chain_pems[0].bytes()
        self.ca, self.cert, self.key = (folder / name for name in ("ca", "cert", "key"))
        authority.cert_pem.write_to_path(str(self.ca))
        server.cert_chain_pems[0].write_to_path(str(self.cert))
        server.private_key_pem.write_to_path(str(self.key))


async def test_tls_is_spoken_when_certificates_are_given(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    trusted = grpc.ssl_channel_credentials(authority.root)
    async with running(tls=TlsFiles(authority.cert, authority.key)) as bound:
        address = f"localhost:{bound.port}"
        async with build_channel(address, credentials=trusted) as channel:
            assert await say(channel) == b"hi"
        async with build_channel(address) as plain:
            with pytest.raises(grpc.aio.AioRpcError):
                await say(plain)


async def test_with_a_client_authority_only_certified_clients_pass(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    anonymous = grpc.ssl_channel_credentials(authority.root)
    certified = grpc.ssl_channel_credentials(
        authority.root, authority.client_key, authority.client_cert
    )
    async with running(tls=TlsFiles(authority.cert, authority.key, authority.ca)) as bound:
        address = f"localhost:{bound.port}"
        async with build_channel(address, credentials=certified) as channel:
            assert await say(channel) == b"hi"
        async with build_channel(address, credentials=anonymous) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await say(channel)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


async def test_tls_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    missing, text = tmp_path / "missing.pem", tmp_path / "text.pem"
    text.write_text("hello")
    (tmp_path / "other").mkdir()
    foreign_key = Authority(tmp_path / "other").key
    for tls, problem in (
        (TlsFiles(missing, authority.key), f"cannot read {missing}: No such file"),
        (TlsFiles(text, authority.key), f"TLS files {text}, .*; check the tls_ settings"),
        (TlsFiles(authority.cert, foreign_key), "key values mismatch"),
        (TlsFiles(authority.cert, authority.key, text), f"TLS files .*{text}"),
    ):
        with pytest.raises(StartupError, match=problem):
            build_server(ServerOptions("127.0.0.1", 0, tls=tls), [])
