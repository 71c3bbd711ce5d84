"""Run Lua scripts on a Redis-compatible server: by hash, in time, one answer or one named error.

Every script here may be repeated, so a broken connection is tried once more on a fresh one.
"""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from cluster.errors import ClusterError as SharedStateError
from cluster.redis_connection import RedisConnection, describe, is_about_credentials

Reply = list[Any]
ErrorFactory = Callable[[str, str, str], SharedStateError]

_ALLOW = "allow its user every command on the keys of this cluster"
# What to do about answers that are no results, by their kind and first words. All of them mean that
# the shared state cannot be used now: processes go on without it, and look again later.
_REMEDIES: tuple[tuple[type[RedisError], str, str], ...] = (
    (OutOfMemoryError, "", "raise its maxmemory, or remove what others keep there"),
    (ReadOnlyError, "", "it is a replica, so give the address of its primary"),
    (NoPermissionError, "", _ALLOW),
    (ResponseError, "The user executing the script can't", _ALLOW),
    (ResponseError, "ACL failure in script", _ALLOW),
    (ResponseError, "NOREPLICAS", "start its replicas, or lower min-replicas-to-write"),
    (ResponseError, "MISCONF", "make room on its disk, or switch its persistence off"),
    (ResponseError, "BUSY ", "wait for another program's script, or end it with SCRIPT KILL"),
    (
        ResponseError,
        "WRONGTYPE",
        "another program wrote to these keys, so choose another cluster_name, or stop all "
        "processes and delete the keys",
    ),
)


class Script:
    """One Lua file behind a shared prelude, named by its SHA-1 as the server names it."""

    __slots__ = ("name", "sha", "source")

    def __init__(self, name: str, source: str) -> None:
        self.name, self.source = name, source
        # Not a matter of security: the server identifies scripts by this hash.
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


def load_source(name: str) -> str:
    """The text of `cluster/lua/NAME.lua`."""
    return (resources.files("cluster") / "lua" / f"{name}.lua").read_text(encoding="utf-8")


def load_scripts(prelude: str | None, names: Sequence[str]) -> dict[str, Script]:
    """Read `cluster/lua/NAME.lua` for each name, each behind the prelude file if there is one."""
    head = "" if prelude is None else load_source(prelude)
    return {name: Script(name, head + load_source(name)) for name in names}


class ScriptRunner:
    """Calls scripts that share their keys."""

    def __init__(
        self,
        connection: RedisConnection,
        scripts: dict[str, Script],
        keys: Sequence[str],
        timeout_s: float,
        unavailable: ErrorFactory,
    ) -> None:
        self._pipe = connection.pipe
        self._address = connection.address
        self._scripts = scripts
        self._keys = tuple(keys)
        self._timeout_s = timeout_s
        self._unavailable = unavailable
        for script in scripts.values():
            # Ahead of all calls: one that found its script missing would fall behind later ones.
            self._pipe.prepare(("SCRIPT", "LOAD", script.source))

    async def call(self, name: str, args: Sequence[str | int]) -> Reply:
        """Run one script. Raises: the `unavailable` error when there is no answer in time."""
        return (await self.call_many(name, (args,)))[0]

    async def call_many(self, name: str, calls: Sequence[Sequence[str | int]]) -> list[Reply]:
        """Run one script once for each argument list, in order, in one round trip."""
        if not calls:
            return []
        return await self._in_time(name, lambda: self._run(self._scripts[name], calls))

    async def _run(self, script: Script, calls: Sequence[Sequence[str | int]]) -> list[Reply]:
        head: tuple[str | int, ...] = ("EVALSHA", script.sha, len(self._keys), *self._keys)
        replies = await self._pipe.ask([(*head, *args) for args in calls])
        if any(isinstance(reply, NoScriptError) for reply in replies):
            # Some may have run, if the script appeared meanwhile; running them again is harmless.
            _raise_first(await self._pipe.ask([("SCRIPT", "LOAD", script.source)]))
            return await self._run(script, calls)
        _raise_first(replies)
        return replies

    async def _in_time(self, name: str, attempt: Callable[[], Any]) -> list[Reply]:
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    return list(await attempt())
                except RedisConnectionError as error:
                    if is_about_credentials(error):
                        raise
                    # A pooled connection may have died since its last use.
                    return list(await attempt())
        except (TimeoutError, RedisTimeoutError) as error:
            problem = f"no answer within {self._timeout_s:g} s"
            raise self._unavailable(name, self._address, problem) from error
        except (RedisError, OSError) as error:
            raise self._unavailable(name, self._address, _problem(error)) from error


def _raise_first(replies: Sequence[object]) -> None:
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply


def _problem(error: Exception) -> str:
    for kind, beginning, remedy in _REMEDIES:
        if isinstance(error, kind) and str(error).startswith(beginning):
            return f"{describe(error)}: {remedy}"
    return describe(error)
