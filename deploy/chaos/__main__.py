"""`python -m deploy.chaos`: rounds of random harm until the time is over or one shows a defect."""

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

import torch

from deploy.chaos.drawing import SIZES, draw_plan
from deploy.chaos.models import model_folder
from deploy.chaos.rounds import has_nixl, run_round
from deploy.local.output import print_line as say
from runtime.clock import MonotonicClock
from runtime.errors import StartupError


def main() -> int:
    """Returns 0 when every round was clean, 1 when one was not."""
    parser = argparse.ArgumentParser("python -m deploy.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="repeat this round alone; default: new seeds")
    parser.add_argument("--seconds", type=float, help="begin no round after this; default: one")
    parser.add_argument("--size", choices=sorted(SIZES), default="long", help="of each round")
    parser.add_argument(
        "--keep-going", action="store_true", help="do not stop at the first round with a defect"
    )
    chosen = parser.parse_args()
    # The right answers are computed here, beside a cluster that wants the cores.
    torch.set_num_threads(1)
    try:
        return asyncio.run(_run_rounds(chosen))
    except KeyboardInterrupt:
        return 130


async def _run_rounds(chosen: argparse.Namespace) -> int:
    clock = MonotonicClock()
    began_at_s = clock.now()
    # Seeds that follow one another take the models in turn.
    first = random.SystemRandom().randrange(10**9) if chosen.seed is None else chosen.seed
    root = Path(tempfile.mkdtemp(prefix="tandem-chaos-"))
    bad: list[int] = []
    number = 0
    while True:
        seed = first + number
        number += 1
        if not await _is_clean(seed, chosen.size, root):
            bad.append(seed)
        say(f"{clock.now() - began_at_s:.0f} s, {number} rounds, {len(bad)} with a defect")
        is_over = chosen.seconds is None or clock.now() - began_at_s >= chosen.seconds
        if is_over or (bad and not chosen.keep_going):
            break
    if bad:
        for seed in bad:
            say(f"repeat it: make chaos SEED={seed} SIZE={chosen.size}; its logs: {root}/{seed}")
        return 1
    shutil.rmtree(root, ignore_errors=True)
    return 0


async def _is_clean(seed: int, size: str, root: Path) -> bool:
    plan = draw_plan(seed, SIZES[size], has_nixl=has_nixl())
    logs = root / str(seed)
    logs.mkdir()
    try:
        record = await run_round(plan, model_folder(plan.setting.model, root), logs, say)
    except StartupError as error:
        say(f"PROBLEM the cluster does not start: {error.message}")
        return False
    if record.problems:
        return False
    shutil.rmtree(logs, ignore_errors=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
