"""A caller: asks, reads at its own pace, perhaps leaves, and says what it got."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from deploy.chaos.oracle import RightAnswers
from deploy.chaos.plan import Ask
from deploy.chaos.record import Record
from deploy.chaos.verdict import LEFT, WORKER_FAILED, Ending, Received
from tandemserve import AsyncClient, AsyncStream, Delta, TandemError

# Far above what any request needs, strikes included: who waits longer hangs.
PATIENCE_S = 120.0


async def call(
    ask: Ask,
    right: RightAnswers,
    clients: Sequence[AsyncClient],
    record: Record,
    has_used_up_tries: Callable[[str], Awaitable[bool]] | None = None,
) -> None:
    """Make one request and enter its end into the record. Raises nothing that a cluster causes.

    `has_used_up_tries` looks into the history of a request that workers failed; None: none may.
    """
    received = [Received() for _ in range(ask.num_choices)]
    client = clients[ask.client]
    stream = client.stream(ask.prompt, **_options(ask, right))
    record.began(ask, stream.request_id)
    # An operator knows a request when it has begun; others may leave at once.
    if ask.fate == "cancel" and ask.after_tokens == 0:
        stream.cancel()
    try:
        async with stream:
            has_left = await _read(ask, stream, received, clients, record)
            ending = Ending(None, LEFT) if has_left else Ending(await stream.completion())
    except TandemError as error:
        # At once, for routers forget when they are killed.
        is_used_up = (
            error.code == WORKER_FAILED
            and has_used_up_tries is not None
            and await has_used_up_tries(stream.request_id)
        )
        ending = Ending(None, error.code, error.message, is_used_up)
    record.ended(ask, right, received, ending)


async def _read(
    ask: Ask,
    stream: AsyncStream,
    received: Sequence[Received],
    clients: Sequence[AsyncClient],
    record: Record,
) -> bool:
    """Read to the end; True where the caller lost interest before."""
    if ask.fate == "leave" and ask.after_tokens == 0:
        return True
    num_tokens, has_acted = 0, False
    async for event in stream:
        if not isinstance(event, Delta):
            continue
        problem = received[event.index].take(event)
        if problem is not None:
            record.add_problem(ask, problem)
        num_tokens += len(event.token_ids)
        record.delivered(len(event.token_ids))
        if num_tokens >= ask.after_tokens and not has_acted:
            has_acted = True
            if ask.fate == "leave":
                return True
            if ask.fate == "cancel":
                stream.cancel()
            elif ask.fate == "operator":
                await _cancel_as_operator(stream.request_id, clients)
        if ask.pause_s:
            await asyncio.sleep(ask.pause_s)
    return False


async def _cancel_as_operator(request_id: str, clients: Sequence[AsyncClient]) -> None:
    """Ask everybody, for nobody knows which router has it; it may have ended, too."""
    for client in clients:
        try:
            await client.admin.cancel(request_id, operator="chaos")
        except TandemError:
            continue


def _options(ask: Ask, right: RightAnswers) -> Any:
    params = ask.sampling
    return {
        "max_tokens": ask.max_tokens,
        "n": ask.num_choices,
        "temperature": params.temperature,
        "top_k": params.top_k,
        "top_p": params.top_p,
        "seed": params.seed,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "presence_penalty": params.presence_penalty,
        "frequency_penalty": params.frequency_penalty,
        "logit_bias": dict(params.logit_bias) or None,
        "min_tokens": params.min_tokens or None,
        "logprobs": params.num_logprobs,
        "prompt_logprobs": params.num_prompt_logprobs,
        "ignore_eos": ask.ignore_eos,
        "stop": right.stop,
        "timeout_s": ask.deadline_s if ask.fate == "deadline" else PATIENCE_S,
    }
