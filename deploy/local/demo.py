"""`demo`: a cluster, some real prompts at once, where their time went, and nothing left behind."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict

from deploy.local.cluster import LocalCluster
from deploy.local.conversation import Outcome, ask_all
from deploy.local.errors import LaunchFailed
from deploy.local.leak_check import LeakCheck, check_for_leaks
from deploy.local.options import LaunchOptions
from deploy.local.output import print_line, progress, say_error, say_interrupted
from deploy.local.questions import demo_questions
from deploy.local.race import first_of
from deploy.local.screen import make_screen
from deploy.local.table import print_outcomes
from runtime.clock import MonotonicClock
from runtime.process import EXIT_INTERRUPTED
from tandemserve import TandemError

# A cancel takes one iteration and one round trip; this is for a machine that is busy.
_LEAK_CHECK_TIMEOUT_S = 10.0


async def demo(options: LaunchOptions, cluster: LocalCluster, stop: asyncio.Event) -> int:
    """Returns the exit code: 0 when all answers came and nothing leaked.

    Raises: StartupError.
    """
    clock = MonotonicClock()
    started_at_s = clock.now()
    show = asyncio.create_task(_show(options, cluster), name="demo")
    was_interrupted = False
    try:
        was_interrupted = not await first_of(show, stop, say_interrupted)
    finally:
        problems = await cluster.stop()
    if was_interrupted:
        progress("demo stopped before its end; all processes have ended")
        return EXIT_INTERRUPTED
    problems = (*show.result(), *problems)
    for problem in problems:
        say_error(problem)
    elapsed_s = clock.now() - started_at_s
    verdict = "failed" if problems else "passed"
    progress(f"demo {verdict} in {elapsed_s:.1f} s; all processes have ended")
    return 1 if problems else 0


async def _show(options: LaunchOptions, cluster: LocalCluster) -> list[str]:
    """Run everything; returns what went wrong, a line each. Raises: StartupError."""
    await cluster.start()
    questions = demo_questions()
    try:
        async with cluster.client() as client:
            with make_screen(questions, is_silent=options.as_json) as screen:
                outcomes = await ask_all(client, questions, screen)
            check = await check_for_leaks(client, _LEAK_CHECK_TIMEOUT_S)
    except TandemError as error:
        raise LaunchFailed(f"[{error.code}] {error.message}") from error
    if options.as_json:
        print_line(_as_json(outcomes, check))
    else:
        print_outcomes(outcomes)
        print_line(check.line())
    return _problems(outcomes, check)


def _problems(outcomes: Sequence[Outcome], check: LeakCheck) -> list[str]:
    problems = [
        f"request {outcome.question.number} {outcome.failure or 'did not end as planned'}"
        for outcome in outcomes
        if not outcome.is_as_planned
    ]
    if not check.is_clean:
        problems.append(check.line())
    return problems


def _as_json(outcomes: Sequence[Outcome], check: LeakCheck) -> str:
    requests = [
        {
            "prompt": outcome.question.text,
            "text": outcome.text,
            "num_output_tokens": outcome.num_output_tokens,
            "failure": outcome.failure,
            "is_as_planned": outcome.is_as_planned,
            "finished": None if outcome.finished is None else asdict(outcome.finished),
        }
        for outcome in outcomes
    ]
    result = {
        "requests": requests,
        "every_block_came_back": check.is_clean,
        "workers": [asdict(worker) for worker in check.workers],
        "num_reserved_blocks": check.num_reserved_blocks,
    }
    return json.dumps(result, separators=(",", ":"))
