"""Reach a Redis-compatible server and make sure that it can carry the cluster's state.

Addresses in messages and logs are host and port, or a socket path: never the URL, which may hold
a password.
"""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cluster.errors import RedisUnreachable, RedisUnsuitable
from cluster.redis_pipe import CommandPipe

MIN_REDIS = (7, 0)
MIN_VALKEY = (8, 0)
# Commands are short and many tasks share a connection's turn, so few connections suffice.
DEFAULT_MAX_CONNECTIONS = 16
DEFAULT_TIMEOUT_S = 2.0


@dataclass(slots=True)
class RedisConnection:
    """A pooled client, its printable address and what answers there."""

    client: Redis
    address: str
    # Such as "Valkey 9.1.2".
    server: str
    # For all scripts: those of the ledger and those of the membership.
    pipe: CommandPipe = field(init=False)

    def __post_init__(self) -> None:
        self.pipe = CommandPipe(self.client)

    async def close(self) -> None:
        """Close the pipe and all connections of the pool."""
        await self.pipe.close()
        await self.client.aclose(close_connection_pool=True)


def printable_address(url: str) -> str:
    """Host and port, or the socket path, of a Redis URL: nothing secret.

    Raises: RedisUnreachable for a text that is no Redis URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme == "unix" and parts.path:
        return parts.path
    if parts.scheme in ("redis", "rediss") and parts.hostname:
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return f"{host}:{port}"
    raise RedisUnreachable(
        "the given URL", "it is not redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH"
    )


def open_client(
    url: str,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    max_connections: int = DEFAULT_MAX_CONNECTIONS,
) -> Redis:
    """A client with a bounded pool that has not connected yet; no hidden retries.

    Raises: RedisUnreachable for an unusable URL.
    """
    address = printable_address(url)
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
        )
    except (ValueError, TypeError) as error:
        # The original text may quote the URL.
        raise RedisUnreachable(address, f"unusable URL ({type(error).__name__})") from None
    return Redis.from_pool(pool)


async def connect(
    url: str,
    *,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    max_connections: int = DEFAULT_MAX_CONNECTIONS,
) -> RedisConnection:
    """Connect and check the server; the caller closes the connection.

    Raises: RedisUnreachable; RedisUnsuitable for an old server or one that may evict keys.
    """
    address = printable_address(url)
    client = open_client(url, timeout_s=timeout_s, max_connections=max_connections)
    try:
        async with asyncio.timeout(timeout_s):
            info = await client.info("server")
            memory = await client.info("memory")
        server = _checked_server(address, info, memory)
    except TimeoutError:
        await client.aclose(close_connection_pool=True)
        raise RedisUnreachable(address, f"no answer within {timeout_s:g} s") from None
    except TypeError:
        # How the client rejects an option of the URL's query.
        await client.aclose(close_connection_pool=True)
        raise RedisUnreachable(address, "unknown option in the URL", "remove it") from None
    except (RedisError, OSError) as error:
        await client.aclose(close_connection_pool=True)
        if is_about_credentials(error):
            remedy = "check the user and the password in the URL"
            raise RedisUnreachable(address, describe(error), remedy) from None
        raise RedisUnreachable(address, describe(error)) from None
    except BaseException:
        await client.aclose(close_connection_pool=True)
        raise
    return RedisConnection(client, address, server)


def describe(error: Exception) -> str:
    """What went wrong, in words that hold no secret."""
    if is_about_credentials(error):
        return "it refused the credentials"
    if isinstance(error, TimeoutError | RedisTimeoutError):
        return "it gave no answer in time"
    if isinstance(error, ResponseError):
        return f"it answered {str(error)[:200]!r}"
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno is not None and cause.strerror:
            # asyncio words some of its own: "Connect call failed".
            return (os.strerror(cause.errno) if cause.errno > 0 else cause.strerror).lower()
    return f"the connection failed ({type(error).__name__})"


def is_about_credentials(error: Exception) -> bool:
    """True when the server wants another user or password, or none was given."""
    return any(
        isinstance(cause, AuthenticationError) or str(cause).startswith("NOAUTH")
        for cause in _causes(error)
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it; the client wraps some errors in others."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _checked_server(address: str, info: dict[str, object], memory: dict[str, object]) -> str:
    valkey = info.get("valkey_version")
    name, version, minimum = (
        ("Valkey", str(valkey), MIN_VALKEY)
        if valkey is not None
        else ("Redis", str(info.get("redis_version", "0")), MIN_REDIS)
    )
    if _version_tuple(version) < minimum:
        raise RedisUnsuitable(
            address,
            f"is {name} {version}",
            f"use Redis {MIN_REDIS[0]}.{MIN_REDIS[1]} or Valkey {MIN_VALKEY[0]}, or newer",
        )
    policy = str(memory.get("maxmemory_policy", ""))
    if policy.startswith("allkeys") and memory.get("maxmemory") not in (0, "0", None):
        raise RedisUnsuitable(
            address,
            f"evicts keys without asking (maxmemory-policy {policy})",
            "set maxmemory-policy noeviction, or use another server",
        )
    return f"{name} {version}"


def _version_tuple(version: str) -> tuple[int, int]:
    major, minor = (*version.split("."), "0", "0")[:2]
    return int(major) if major.isdigit() else 0, int(minor) if minor.isdigit() else 0
