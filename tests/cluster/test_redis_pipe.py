"""Many callers on one connection: each gets its own answers, and nobody waits for a dead one."""

import asyncio
from typing import Any

import pytest
import uvloop
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from cluster.redis_connection import RedisConnection, connect
from cluster.redis_pipe import Command, CommandPipe
from cluster.redis_server import RedisServer

PATIENCE_S = 10.0


async def ask(pipe: CommandPipe, *commands: Command) -> list[Any]:
    async with asyncio.timeout(PATIENCE_S):
        return await pipe.ask(commands)


async def blocked(connection: RedisConnection) -> asyncio.Task[list[Any]]:
    """A call that the server has taken in and will not answer."""
    (number,) = await ask(connection.pipe, ("CLIENT", "ID"))
    task = asyncio.create_task(connection.pipe.ask([("BLPOP", "nobody-pushes", 0)]))
    async with asyncio.timeout(PATIENCE_S):
        while "b" not in await flags_of(connection, number):
            pass
    return task


async def flags_of(connection: RedisConnection, number: int) -> str:
    (client,) = await connection.client.client_list(client_id=[str(number)])
    return str(client["flags"])


async def test_everybody_gets_their_own_answers_in_order(connection: RedisConnection) -> None:
    async def one(number: int) -> list[Any]:
        return await ask(connection.pipe, ("ECHO", number), ("ECHO", f"{number} again"))

    answers = await asyncio.gather(*map(one, range(200)))
    assert answers == [[str(number), f"{number} again"] for number in range(200)]


async def test_calls_are_carried_out_in_the_order_in_which_they_were_made(
    connection: RedisConnection, cluster_name: str
) -> None:
    calls = [ask(connection.pipe, ("RPUSH", cluster_name, number)) for number in range(100)]
    assert await asyncio.gather(*calls) == [[number + 1] for number in range(100)]
    (found,) = await ask(connection.pipe, ("LRANGE", cluster_name, 0, -1))
    assert found == [str(number) for number in range(100)]


async def test_a_refusal_is_an_answer_among_the_others(connection: RedisConnection) -> None:
    first, refused, last = await ask(connection.pipe, ("ECHO", 1), ("NO SUCH",), ("ECHO", 2))
    assert (first, last) == ("1", "2")
    assert isinstance(refused, ResponseError)


async def test_an_answer_that_comes_too_late_goes_to_nobody_else(
    connection: RedisConnection, cluster_name: str
) -> None:
    early = asyncio.create_task(connection.pipe.ask([("ECHO", "early")]))
    late = asyncio.create_task(connection.pipe.ask([("BLPOP", cluster_name, 0)]))
    assert await early == ["early"]
    late.cancel()
    await asyncio.wait([late])
    after = asyncio.create_task(connection.pipe.ask([("ECHO", "after")]))
    await asyncio.sleep(0)
    await connection.client.rpush(cluster_name, "too late")
    async with asyncio.timeout(PATIENCE_S):
        assert await after == ["after"]


async def test_behind_a_server_that_says_nothing_nobody_else_waits(server: RedisServer) -> None:
    connection = await connect(server.url, timeout_s=PATIENCE_S)
    silent = await blocked(connection)
    silent.cancel()
    await asyncio.wait([silent])
    assert await ask(connection.pipe, ("ECHO", "anew")) == ["anew"]
    await connection.close()


async def test_a_connection_that_breaks_is_everybodys_error_and_the_next_call_dials_anew(
    server: RedisServer,
) -> None:
    connection = await connect(server.url, timeout_s=PATIENCE_S)
    (number,) = await ask(connection.pipe, ("CLIENT", "ID"))
    first = await blocked(connection)
    second = asyncio.create_task(connection.pipe.ask([("ECHO", "never")]))
    await asyncio.sleep(0)
    await connection.client.client_kill_filter(_id=str(number))
    for task in (first, second):
        with pytest.raises(RedisConnectionError):
            await asyncio.wait_for(task, PATIENCE_S)
    assert await ask(connection.pipe, ("ECHO", "anew")) == ["anew"]
    await connection.close()


def test_a_transport_that_has_just_closed_is_a_broken_connection(server: RedisServer) -> None:
    async def callers_while_it_closes() -> list[Any]:
        connection = await connect(server.url, timeout_s=PATIENCE_S)
        assert await ask(connection.pipe, ("ECHO", "before")) == ["before"]
        line: Any = connection.pipe._line
        line._connection._writer.transport.abort()
        callers = []
        for _ in range(10):
            callers.append(asyncio.create_task(ask(connection.pipe, ("ECHO", "during"))))
            await asyncio.sleep(0)
        answers = await asyncio.gather(*callers, return_exceptions=True)
        assert await ask(connection.pipe, ("ECHO", "anew")) == ["anew"]
        await connection.close()
        return answers

    # Which loop the router runs on; asyncio's own says nothing there.
    answers = uvloop.run(callers_while_it_closes())
    assert any(isinstance(answer, RedisConnectionError) for answer in answers)
    assert all(
        answer == ["during"] or isinstance(answer, RedisConnectionError) for answer in answers
    )


async def test_a_closed_pipe_lets_nobody_wait_and_dials_no_more(server: RedisServer) -> None:
    connection = await connect(server.url, timeout_s=PATIENCE_S)
    waiting = await blocked(connection)
    await connection.close()
    for call in (waiting, connection.pipe.ask([("ECHO", 1)])):
        with pytest.raises(RedisConnectionError, match="closed on this side"):
            await asyncio.wait_for(call, PATIENCE_S)


async def test_a_pipe_that_was_never_used_closes(server: RedisServer) -> None:
    connection = await connect(server.url, timeout_s=PATIENCE_S)
    await connection.close()
