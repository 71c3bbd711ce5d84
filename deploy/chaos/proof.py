"""In the end every worker must do its part again: each in turn gets work that no other may take."""

from collections.abc import Sequence
from dataclasses import replace

from deploy.chaos.aftermath import idleness_lines, until_whole
from deploy.chaos.caller import call
from deploy.chaos.oracle import RightAnswers
from deploy.chaos.plan import Ask, Setting
from deploy.chaos.record import Record
from tandemserve import AsyncClient, TandemError

# Of each turn.
_NUM_REQUESTS = 3


async def prove_everybody_works(
    router: AsyncClient,
    setting: Setting,
    asked: Sequence[tuple[Ask, RightAnswers]],
    record: Record,
) -> None:
    """Through one router: close all but one pair of workers, ask, and go on with the next pair."""
    jobs = [(_undisturbed(ask), right) for ask, right in asked]
    for turn in range(max(setting.num_prefill, setting.num_decode)):
        pair = {f"prefill-{turn % setting.num_prefill}", f"decode-{turn % setting.num_decode}"}
        try:
            for worker_id in set(setting.workers) - pair:
                await router.admin.cordon(worker_id, force=True)
        except TandemError as error:
            record.add_problem(None, f"in the end a worker cannot be cordoned: {error.message}")
        record.workers.clear()
        for ask, right in jobs[turn : turn + _NUM_REQUESTS]:
            await call(ask, right, (router,), record)
        if not pair <= record.workers - {""}:
            missing = sorted(pair - record.workers)
            record.add_problem(None, f"in the end nothing runs on {', '.join(missing)} any more")
            for line in await idleness_lines(router, missing):
                record.say(line)
        # Opens them again.
        for problem in await until_whole((router,), setting.workers):
            record.add_problem(None, problem)


def _undisturbed(ask: Ask) -> Ask:
    """By a caller who waits for the end."""
    return replace(ask, fate="finish", client=0, pause_s=0.0)
