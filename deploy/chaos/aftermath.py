"""After the strikes: is everybody back, is everything empty, and what happened to a request?"""

import asyncio
from collections.abc import Collection, Sequence

from deploy.chaos import verdict
from deploy.local.leak_check import check_for_leaks
from runtime.clock import MonotonicClock
from tandemserve import AsyncClient, RequestFilter, TandemError

# A worker that was killed last has to start and load; on a busy machine.
_WHOLE_WITHIN_S = 90.0
# Longer than any lease.
_EMPTY_WITHIN_S = 30.0
_POLL_S = 0.05


async def until_whole(routers: Sequence[AsyncClient], workers: Collection[str]) -> list[str]:
    """Wait until every router has the ledger and all workers, each of them open.

    Returns who is missing where in the end; opens what a strike could not open again.
    """
    clock = MonotonicClock()
    deadline_at_s = clock.now() + _WHOLE_WITHIN_S
    while True:
        missing = [line for client in routers for line in await _missing(client, workers)]
        if not missing or clock.now() >= deadline_at_s:
            return missing
        await asyncio.sleep(_POLL_S)


async def _missing(client: AsyncClient, workers: Collection[str]) -> list[str]:
    try:
        status, views = await client.admin.status(), await client.admin.workers()
        books = (await client.admin.reservations()).workers if status.ledger_available else ()
        for view in views:
            if view.state == "ready" and view.admission in ("cordoned", "evacuating"):
                await client.admin.uncordon(view.worker_id)
    except TandemError as error:
        return [f"a router does not answer: {error.message}"]
    state_by_id = {view.worker_id: (view.state, view.admission) for view in views}
    about = f"{status.router_id} in the end"
    missing = [] if status.ledger_available else [f"{about}: no ledger"]
    for worker_id in workers:
        state = state_by_id.get(worker_id, ("unknown", ""))
        if state != ("ready", "open"):
            missing.append(f"{about}: {worker_id} is {' and '.join(filter(None, state))}")
    booked = {(book.worker_id, book.incarnation, book.num_blocks) for book in books}
    missing += [
        f"{about}: the ledger does not know {view.worker_id}"
        for view in views
        if (view.worker_id, view.incarnation, view.num_blocks) not in booked
    ]
    return missing


async def idleness_lines(client: AsyncClient, workers: Collection[str]) -> list[str]:
    """What a router and the ledger say of workers that get no work. Raises: TandemError."""
    views, books = await client.admin.workers(), await client.admin.reservations()
    of_views = [str(view) for view in views if view.worker_id in workers]
    return of_views + [str(book) for book in books.workers if book.worker_id in workers]


async def check_empty(client: AsyncClient) -> list[str]:
    """What is left over at one router, on its workers and in the ledger, when no request runs."""
    try:
        leaks = await check_for_leaks(client, _EMPTY_WITHIN_S)
        status, queues = await client.admin.status(), await client.admin.queues()
        running = (await client.admin.requests(RequestFilter(state="running"))).num_running
    except TandemError as error:
        return [f"a router cannot be asked for leaks: {error.message}"]
    left = [] if leaks.is_clean else [f"{status.router_id}: {leaks.line()}"]
    counts = {
        "running requests": running,
        "queued prompts": queues.num_prompt_tasks,
        "queued generations": queues.num_generation_tasks,
        "stranded prompts": queues.num_stranded_tasks,
        "prefilling": status.num_prefilling,
        "transferring": status.num_transferring,
        "decoding": status.num_decoding,
    }
    for view in leaks.workers:
        counts[f"tasks on {view.worker_id}"] = view.num_tasks
    left += [
        f"{status.router_id}: {number} {what} are left" for what, number in counts.items() if number
    ]
    return left


async def has_used_up_tries(
    routers: Sequence[AsyncClient], request_id: str, max_retries: int
) -> bool:
    """Does a router remember that workers failed one of the request's answers so often?"""
    for client in routers:
        try:
            history = await client.admin.request(request_id)
        except TandemError:
            continue
        if verdict.has_used_up_tries(history, max_retries):
            return True
    return False


async def history_lines(client: AsyncClient, request_id: str) -> list[str]:
    """The timeline of a request as one router remembers it; nothing where it does not."""
    try:
        router_id = (await client.admin.status()).router_id
        history = await client.admin.request(request_id)
    except TandemError:
        return []
    lines = [f"request {request_id} at {router_id}: {history.request.state}"]
    for timeline in history.timelines:
        lines.extend(
            f"  answer {timeline.index} {event.at_s:7.3f} s {event.change} -> {event.phase} "
            f"{event.worker_id}, {event.num_blocks} blocks, {event.num_output_tokens} tokens, "
            f"try {event.number_of_try} {event.reason}"
            for event in timeline.events
        )
    return lines
