"""One connection to the server that all callers of a process share: commands go out at once, one
behind the other, and answers come back in the same order.

A pool gives every command a connection of its own. To take it, to put limits of time around writing
and reading, and to give it back, costs several times what the command itself does.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

Command = Sequence[str | int]

# Calls that wait for their answers: far more than a router makes, far less than memory holds.
_MAX_WAITING = 10_000
_HUNG_UP = "the connection was closed on this side"


class CommandPipe:
    """Dials when it is first needed, and again after a connection broke. For one event loop."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._line: _Line | None = None
        self._preparations: list[Command] = []
        self._dialling = asyncio.Lock()
        self._is_closed = False

    def prepare(self, command: Command) -> None:
        """Send it on every connection, ahead of what is asked next; its answer does not matter."""
        if command not in self._preparations:
            self._preparations.append(command)

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The answers in order; what the server refuses to do is an error among them.

        Calls are carried out in the order in which they are made, as long as one connection lasts.
        The caller limits the time. Raises: RedisError where the connection broke or there is none;
        the commands may have been carried out.
        """
        line = self._line
        if line is None or line.is_broken:
            line = await self._dial()
        return await line.ask(commands, self._preparations)

    async def close(self) -> None:
        """Hang up for good; whoever waits gets an error."""
        self._is_closed = True
        if self._line is not None:
            await self._line.close()

    async def _dial(self) -> "_Line":
        async with self._dialling:
            if self._line is None or self._line.is_broken:
                # Not one of the pool's: nobody else may speak on it.
                pool: Any = self._client.connection_pool  # this part of it has no types
                connection = pool.make_connection()
                try:
                    await connection.connect()
                    if self._is_closed:
                        raise RedisConnectionError(_HUNG_UP)
                except BaseException:
                    await connection.disconnect(nowait=True)
                    raise
                # From here on the callers limit the time, each for itself.
                connection.socket_timeout = None
                self._line = _Line(connection)
            return self._line


@dataclass(slots=True, eq=False)
class _Asked:
    """One call: the answers that have come, and who waits for all of them."""

    num_commands: int
    answers: list[Any]
    outcome: asyncio.Future[list[Any]]


class _Line:
    """One connection and who waits for an answer on it. Broken once, it stays so."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._waiting: deque[_Asked] = deque()
        self._num_answers = 0
        self._is_over = False
        self._num_prepared = 0
        self._reading = asyncio.create_task(self._read(), name="redis-answers")

    @property
    def is_broken(self) -> bool:
        """Nothing can be asked here any more."""
        return self._is_over or not self._connection.is_connected

    async def ask(self, commands: Sequence[Command], preparations: Sequence[Command]) -> list[Any]:
        if self.is_broken or len(self._waiting) >= _MAX_WAITING:
            raise RedisConnectionError("the connection broke, or too many wait for its answers")
        first = preparations[self._num_prepared :]
        packed = b"".join(map(_packed, (*first, *commands)))
        if first:
            self._expect(len(first))
            self._num_prepared = len(preparations)
        outcome = self._expect(len(commands))
        num_answers_before = self._num_answers
        try:
            # Writes before it waits for anything, so that nobody comes in between.
            await self._connection.send_packed_command(packed, check_health=False)
            return await outcome
        except RuntimeError as error:
            # uvloop's word for a transport that closed since the look above.
            outcome.cancel()
            self._hang_up()
            raise RedisConnectionError("the connection was closed") from error
        except asyncio.CancelledError:
            # Out of time, mostly. Where nothing at all came back meanwhile, the next one dials
            # anew: a server that is gone without a word would keep it waiting as well.
            if self._num_answers == num_answers_before:
                self._hang_up()
            raise

    def _expect(self, num_answers: int) -> asyncio.Future[list[Any]]:
        outcome: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(num_answers, [], outcome))
        return outcome

    async def close(self) -> None:
        """Returns when the connection is closed."""
        self._hang_up()
        await asyncio.wait([self._reading])

    def _hang_up(self) -> None:
        self._is_over = True
        self._reading.cancel()

    async def _read(self) -> None:
        problem: Exception = RedisConnectionError(_HUNG_UP)
        try:
            while True:
                self._take(await self._answer())
        except Exception as error:
            problem = error
        finally:
            self._is_over = True
            for asked in self._waiting:
                if not asked.outcome.done():
                    asked.outcome.set_exception(problem)
                    asked.outcome.exception()  # seen: whoever waited may have left
            self._waiting.clear()
            with contextlib.suppress(Exception):
                await self._connection.disconnect(nowait=True)

    async def _answer(self) -> Any:
        try:
            return await self._connection.read_response()
        except ResponseError as error:
            return error

    def _take(self, answer: Any) -> None:
        self._num_answers += 1
        if not self._waiting:
            raise RedisConnectionError("the server answered what nobody had asked")
        asked = self._waiting[0]
        asked.answers.append(answer)
        if len(asked.answers) == asked.num_commands:
            self._waiting.popleft()
            if not asked.outcome.done():  # else nobody waits any more
                asked.outcome.set_result(asked.answers)


def _packed(command: Command) -> bytes:
    pack: Any = hiredis.pack_command  # its stub knows tuples of one only
    packed: bytes = pack(tuple(command))
    return packed
