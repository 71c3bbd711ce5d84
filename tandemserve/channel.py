"""The settings of a gRPC channel, the same for both clients."""

import ssl

import grpc

from tandemserve.options import TLSConfig


def channel_credentials(tls: TLSConfig) -> grpc.ChannelCredentials:
    """The credentials, from the files as they are now.

    Raises: OSError for a file that cannot be read, ValueError for one that is no PEM.
    """
    check_tls_files(tls)
    return grpc.ssl_channel_credentials(
        root_certificates=tls.ca.read_bytes() if tls.ca else None,
        private_key=tls.key.read_bytes() if tls.key else None,
        certificate_chain=tls.cert.read_bytes() if tls.cert else None,
    )


def check_tls_files(tls: TLSConfig) -> None:
    """gRPC would only say that the handshake failed. Raises: OSError; ValueError with the name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tls.ca is not None:
        try:
            context.load_verify_locations(cafile=tls.ca)
        except ssl.SSLError as error:
            raise ValueError(
                f"{tls.ca} holds no certificate in PEM form ({error.reason}); give the file of "
                "the authority that signed the router's certificate"
            ) from None
    if tls.cert is not None:
        try:
            # gRPC takes no passphrase either; without this, OpenSSL would ask the terminal.
            context.load_cert_chain(tls.cert, tls.key, password="")
        except ssl.SSLError as error:
            raise ValueError(
                f"{tls.cert} and {tls.key} are no certificate and its private key in PEM form, "
                f"without a passphrase ({error.reason}); give a pair that belongs together"
            ) from None


def channel_options(target: str) -> list[tuple[str, int]]:
    """Settings of the gRPC channel: long quiet answers stay alive, broken ones reconnect soon."""
    options = [
        # Answers may be silent for long in a queue; routers in between drop silent connections.
        # A router that was stopped, or a host that is gone, is noticed by them as well.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", 64 * 1024 * 1024),
        ("grpc.max_send_message_length", 16 * 1024 * 1024),
        # gRPC's own waits between connection attempts, below those of RetryPolicy: else a retry
        # would fail without trying.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        # A name may have several addresses, and others once a router has moved.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        # Clients do not share connections, so closing one or waiting in one affects no other.
        ("grpc.use_local_subchannel_pool", 1),
        # Retries are ours: gRPC's know nothing of replays.
        ("grpc.enable_retries", 0),
    ]
    if target.startswith(("127.", "localhost", "[::1]", "unix:")):
        # A proxy from the environment cannot reach this machine's loopback.
        options.append(("grpc.enable_http_proxy", 0))
    return options
