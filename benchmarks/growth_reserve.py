"""What the growth reserve of a decode worker costs and saves, in virtual time over the real cores.

Run: python benchmarks/growth_reserve.py [--requests 200] [--seeds 5] [--num-blocks 200]
One prefill and one decode worker of `simulator/`, more requests than the decode worker can hold,
all there from the start. Answers end at random after 50 tokens on average, at most 200, and the
predictor has seen a thousand such answers: it knows how long they are, not which one is long. Every
iteration takes as long whatever is in it, so tokens/s says how full the batches were. Who makes
room, and when, is as the policy has it; where there is swap, whoever does so goes there. Nothing
here depends on the machine.
"""

import argparse
import random
import statistics
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cluster.memory_ledger import MemoryLedger
from router.core import RouterCore
from router.state import RouterSettings
from runtime.clock import ManualClock
from scheduling.length_quantiles import OnlineQuantiles
from scheduling.policies import policy_named
from simulator.checked_engine import answer
from simulator.testing import Ask, CheckedCluster, check_answers, check_empty, spec_of, start

NUM_SEEN = 1000
RESERVES = (0.0, 1 / 32, 1 / 16, 1 / 8, 1 / 4)
MAX_TOKENS, END_IDS_OF_1000 = 200, 20
BLOCK_SIZE, MAX_NUM_SEQS = 4, 64


@dataclass(frozen=True, slots=True)
class Run:
    """One simulated load."""

    tokens_per_s: float
    preemptions: int
    # Computed again, of all that were computed.
    recomputed_share: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--num-blocks", type=int, default=200)
    args = parser.parse_args()
    heads = ("policy", "swap", "reserve", "tokens/s", "min", "max", "% of 0", "preempted", "again")
    print("{:>8} {:>5} {:>8} {:>9} {:>7} {:>7} {:>7} {:>10} {:>8}".format(*heads))
    for policy in ("default", "fcfs"):
        for num_swap_blocks in (0, 2 * args.num_blocks):
            without = 0.0
            for reserve in RESERVES:
                runs = [
                    run(policy, reserve, seed, args.requests, args.num_blocks, num_swap_blocks)
                    for seed in range(args.seeds)
                ]
                speeds = [each.tokens_per_s for each in runs]
                mean = statistics.mean(speeds)
                without = without or mean
                print(
                    f"{policy:>8} {num_swap_blocks:>5} {reserve:>8.4f} {mean:>9.0f} "
                    f"{min(speeds):>7.0f} {max(speeds):>7.0f} {100 * mean / without:>7.1f} "
                    f"{statistics.mean(each.preemptions for each in runs):>10.1f} "
                    f"{100 * statistics.mean(each.recomputed_share for each in runs):>7.1f}%",
                    flush=True,
                )


def run(
    policy: str,
    reserve: float,
    seed: int,
    num_requests: int,
    num_blocks: int,
    num_swap_blocks: int,
) -> Run:
    """One load to its end. Raises: AssertionError for a wrong token or a block left behind."""
    predictor = OnlineQuantiles()
    for number, seen in enumerate(_asks(random.Random(-1 - seed), NUM_SEEN)):
        spec = spec_of(number, seen)
        predictor.observe(spec.features(), len(answer(seen.prompt, spec.stop)))
    chosen = policy_named(policy, 0.5, 4)
    cluster = CheckedCluster(
        RouterCore(chosen, predictor, RouterSettings()),
        MemoryLedger(ManualClock()),
        random.Random(seed),
        block_size=BLOCK_SIZE,
        num_swap_blocks=num_swap_blocks,
        max_num_seqs=MAX_NUM_SEQS,
        growth_reserve=reserve,
        policy=chosen,
    )
    cluster.start_worker("prefill-0", "prefill", 4 * num_blocks)
    cluster.start_worker("decode-0", "decode", num_blocks)
    asks = _asks(random.Random(seed), num_requests)
    for number, ask in enumerate(asks):
        cluster.at(0.0, partial(start, cluster, number, ask))
    cluster.run(max_events=10_000_000)
    check_answers(cluster, asks)
    check_empty(cluster)
    num_tokens = sum(map(len, cluster.tokens.values()))
    timings = [finished.timings for finished in cluster.finished.values()]
    ends_at_s = max(each.total_s for each in timings)
    # The last token of an answer is never computed from.
    num_needed = sum(len(ask.prompt) for ask in asks) + num_tokens - len(asks)
    num_computed = sum(
        cluster.engine_of(name).num_computed_tokens for name in ("prefill-0", "decode-0")
    )
    return Run(
        tokens_per_s=num_tokens / ends_at_s,
        preemptions=sum(each.num_preemptions for each in timings),
        recomputed_share=1 - num_needed / num_computed,
    )


def _asks(rng: random.Random, num_requests: int) -> list[Ask]:
    return [
        Ask(
            prompt=tuple(rng.randrange(1000) for _ in range(rng.randint(8, 40))),
            max_tokens=MAX_TOKENS,
            num_choices=1,
            at_s=0.0,
            cancel_after_s=None,
            deadline_s=None,
            num_end_ids=END_IDS_OF_1000,
        )
        for _ in range(num_requests)
    ]


if __name__ == "__main__":
    main()
