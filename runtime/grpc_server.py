"""gRPC servers and channels with one set of limits: keepalive, sizes, TLS, tokens, health.

A server answers standard health and reflection beside its own services. Stubs and messages of
our own protocol are not known here.
"""

import errno
import hmac
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection

from runtime.errors import StartupError
from runtime.health import HEALTH_SERVICE, HealthBoard
from runtime.malformed import MalformedMessageCheck

DEFAULT_MAX_MESSAGE_BYTES = 64 * 1024 * 1024
_KEEPALIVE_TIMEOUT_MS = 10_000
# Calls that have arrived and wait for the event loop to take them.
_MAX_PENDING_CALLS = 100_000
# Peers may ping this often; less than any keepalive below, so that none is taken for abuse.
_MIN_PING_INTERVAL_MS = 2_000


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files of a server; with `client_ca`, clients need a certificate as well."""

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """What a server listens on and what it puts up with."""

    host: str
    # 0 picks a free one.
    port: int
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    # Per connection.
    max_concurrent_streams: int = 4096
    keepalive_s: float = 30.0
    tls: TlsFiles | None = None
    auth_token: str | None = None


@dataclass(frozen=True, slots=True)
class BoundServer:
    """A server that owns its port and has not been started: add services, then `start`."""

    server: grpc.aio.Server
    port: int
    health: HealthBoard

    async def start(self) -> None:
        """Begin to answer; services stay NOT_SERVING until `health.set_ready` says otherwise."""
        await self.server.start()

    async def stop(self, grace_s: float) -> None:
        """Report NOT_SERVING, refuse new calls, give running ones `grace_s` to end."""
        self.health.close()
        await self.server.stop(grace_s)


def build_server(options: ServerOptions, service_names: Sequence[str]) -> BoundServer:
    """Bind the port and add health and reflection for the full names of the services to come.

    Raises: StartupError for a port that cannot be had or TLS files that cannot be read.
    """
    interceptors: list[grpc.aio.ServerInterceptor] = [MalformedMessageCheck()]
    if options.auth_token is not None:
        interceptors.insert(0, BearerTokenCheck(options.auth_token))
    server = grpc.aio.server(
        interceptors=interceptors,
        options=[
            # Two servers on one port would share its connections at random.
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", options.max_concurrent_streams),
            # Above a thousand calls that nobody has begun to serve, gRPC would cancel some at
            # random, without a reason that a caller could act on.
            ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
            ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
            ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
            *_limits(options.max_message_bytes, options.keepalive_s),
        ],
    )
    credentials = None if options.tls is None else _server_credentials(options.tls)
    port = _bind(server, options, credentials)
    health = HealthBoard(service_names)
    health.add_to(server)
    names = (*service_names, HEALTH_SERVICE, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    return BoundServer(server, port, health)


def build_channel(
    address: str,
    *,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    keepalive_s: float = 5.0,
    credentials: grpc.ChannelCredentials | None = None,
) -> grpc.aio.Channel:
    """A channel between two of our processes; it connects on the first call, and again later."""
    options = [
        *_limits(max_message_bytes, keepalive_s),
        ("grpc.http2.max_pings_without_data", 0),
        # A proxy of the environment is meant for the way out, not for the next process.
        ("grpc.enable_http_proxy", 0),
        # A channel to a restarted peer must not inherit the back-off of the old one.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 2_000),
    ]
    if credentials is not None:
        return grpc.aio.secure_channel(address, credentials, options=options)
    return grpc.aio.insecure_channel(address, options=options)


class BearerTokenCheck(grpc.aio.ServerInterceptor):
    """Refuses calls without `authorization: Bearer <token>`, except to the health service.

    Probes of an orchestrator cannot send a token, and health says nothing worth hiding.
    """

    def __init__(self, token: str) -> None:
        self._expected = f"Bearer {token}".encode()
        # gRPC takes the kinds of streams from the handler it gets, so one refusal fits all calls.
        self._refusal: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            _refuse_unauthenticated
        )

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Pass the call on, or answer UNAUTHENTICATED in its place."""
        if handler_call_details.method.startswith(f"/{HEALTH_SERVICE}/"):
            return await continuation(handler_call_details)
        for key, value in handler_call_details.invocation_metadata or ():
            if key == "authorization":
                given = value if isinstance(value, bytes) else value.encode()
                if hmac.compare_digest(given, self._expected):
                    return await continuation(handler_call_details)
        return self._refusal


async def _refuse_unauthenticated(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
    await context.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        "missing or wrong token; send `authorization: Bearer <token>`",
    )


def _limits(max_message_bytes: int, keepalive_s: float) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", max(int(keepalive_s * 1000), _MIN_PING_INTERVAL_MS)),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _bind(
    server: grpc.aio.Server, options: ServerOptions, credentials: grpc.ServerCredentials | None
) -> int:
    host, port = options.host.strip("[]"), options.port
    _try_port(host, port)
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if credentials is not None:
            return server.add_secure_port(address, credentials)
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartupError(f"cannot listen on {address}; set another host or port") from error


def _try_port(host: str, port: int) -> None:
    """Bind and let go, to say why a port cannot be had: gRPC does not, and prints lines as well.

    Raises: StartupError.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartupError(f"host {host} is unknown; set another host") from error
    refusals = [_bind_error(info) for info in found]
    for refusal in refusals:
        # A name such as localhost has several addresses, and a container may lack one family;
        # that leaves the others. A port that is taken on one of them is taken.
        taken = refusal is not None and refusal.errno in (errno.EADDRINUSE, errno.EACCES)
        if refusal is not None and (taken or all(refusals)):
            raise StartupError(_why_no_port(refusal, host, port)) from refusal


def _bind_error(info: tuple[Any, ...]) -> OSError | None:
    """Why one address cannot be had, None if it can."""
    family, kind, protocol, _, address = info
    try:
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            # Linux lets two sockets bind one port as long as neither of them listens.
            probe.listen(1)
    except OSError as error:
        return error
    return None


def _why_no_port(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is taken; stop what listens on it, or set another port"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has; set a port above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"host {host} is not an address of this machine; set another host"
    return f"cannot listen on {host}:{port}: {error.strerror}; set another host or port"


def _server_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    pair = (_read_pem(tls.key), _read_pem(tls.cert))
    client_ca = None if tls.client_ca is None else _read_pem(tls.client_ca)
    _check_pem(tls)
    return grpc.ssl_server_credentials(
        [pair], root_certificates=client_ca, require_client_auth=client_ca is not None
    )


def _read_pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror
        raise StartupError(f"cannot read {path}: {reason}; check the tls_ settings") from error


def _check_pem(tls: TlsFiles) -> None:
    """Load the files once with Python's own TLS, which says in one line what is wrong."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password at hand, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(tls.cert, tls.key, password=lambda: "")
        if tls.client_ca is not None:
            context.load_verify_locations(tls.client_ca)
    except ssl.SSLError as error:
        files = ", ".join(str(path) for path in (tls.cert, tls.key, tls.client_ca) if path)
        problem = (error.reason or "not PEM").replace("_", " ").lower()
        raise StartupError(f"TLS files {files}: {problem}; check the tls_ settings") from error
