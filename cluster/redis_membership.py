"""Membership in Redis or Valkey: leases on the server's clock, changes announced by pub/sub."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from cluster.errors import MembershipUnavailable, WorkerNameTaken
from cluster.ledger import check_incarnation, ttl_ms_of
from cluster.ledger_records import incarnation_text
from cluster.member_records import member_text, parse_member
from cluster.membership import Listing, MemberRecord, WakeUp, name_taken_over
from cluster.process_identity import ProcessIdentity, is_known_dead
from cluster.redis_connection import RedisConnection, describe
from cluster.redis_scripts import Reply, ScriptRunner, load_scripts
from scheduling.ids import Incarnation

_OPERATIONS = ("register", "deregister", "listing", "next_incarnation")
_TABLES = ("records", "incarnations", "epoch")
_FORGET_AFTER_MS = 3_600_000


class RedisMembership:
    """`Membership` on a server that all processes share.

    Incarnations are the server's clock in microseconds, or one more than the last if that is
    larger: a counter alone would begin again when a server without persistence restarts, a clock
    alone could be set back.
    """

    def __init__(
        self,
        connection: RedisConnection,
        *,
        cluster: str = "default",
        timeout_s: float = 1.0,
        is_dead: Callable[[ProcessIdentity], bool] = is_known_dead,
    ) -> None:
        keys = [f"{{tandem:{cluster}}}:members:{table}" for table in _TABLES]
        scripts = load_scripts(None, _OPERATIONS)
        self._runner = ScriptRunner(connection, scripts, keys, timeout_s, MembershipUnavailable)
        self._connection = connection
        self._timeout_s = timeout_s
        self._channel = f"{{tandem:{cluster}}}:members:changed"
        self._is_dead = is_dead

    async def next_incarnation(self, name: str) -> Incarnation:
        reply = await self._runner.call("next_incarnation", (name,))
        return Incarnation(int(reply[1]))

    async def register(self, record: MemberRecord, ttl_s: float) -> None:
        reply = await self._register(record, ttl_s, replace="")
        if reply[0] == "taken":
            holder = parse_member(reply[3])
            if holder is None or not self._is_dead(holder.process):
                host, pid = (holder.process.host, holder.process.pid) if holder else ("?", 0)
                raise WorkerNameTaken(record.name, host, pid, reply[2] / 1000)
            reply = await self._register(record, ttl_s, replace=reply[1])
        if reply[0] != "ok":
            raise name_taken_over(record)

    async def _register(self, record: MemberRecord, ttl_s: float, replace: str) -> Reply:
        check_incarnation(record.incarnation)
        incarnation = incarnation_text(record.incarnation)
        text = member_text(record)
        args = (self._channel, record.name, incarnation, ttl_ms_of(ttl_s), text, replace)
        return await self._runner.call("register", args)

    async def deregister(self, record: MemberRecord) -> None:
        args = (self._channel, record.name, incarnation_text(record.incarnation))
        await self._runner.call("deregister", args)

    async def listing(self) -> Listing:
        reply = await self._runner.call("listing", (_FORGET_AFTER_MS,))
        members = [member for member in map(parse_member, reply[3:]) if member is not None]
        ordered = tuple(sorted(members, key=lambda member: member.name))
        return Listing(ordered, epoch=reply[1], store_now_s=int(reply[2]) / 1000)

    @asynccontextmanager
    async def wake_up(self) -> AsyncIterator[WakeUp]:
        subscription = self._connection.client.pubsub(ignore_subscribe_messages=True)
        try:
            try:
                async with asyncio.timeout(self._timeout_s):
                    await subscription.subscribe(self._channel)
            except (RedisError, OSError) as error:
                raise self._unavailable(error) from error
            yield _Subscription(subscription, self._unavailable)
        finally:
            await subscription.aclose()  # type: ignore[no-untyped-call]

    def _unavailable(self, error: Exception) -> MembershipUnavailable:
        return MembershipUnavailable("watch", self._connection.address, describe(error))


class _Subscription:
    def __init__(
        self, pubsub: PubSub, unavailable: Callable[[Exception], MembershipUnavailable]
    ) -> None:
        self._pubsub = pubsub
        self._unavailable = unavailable

    async def wait(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                # The confirmation of the subscription comes as an ignored message.
                while await self._pubsub.get_message(timeout=timeout_s) is None:
                    continue
        except TimeoutError:
            return
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error
