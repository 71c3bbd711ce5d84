"""One prefill worker before five decode workers: none of them stays idle while others work."""

import random
from collections import Counter

import pytest

from simulator.testing import Ask, CheckedCluster, new_cluster, run_and_check

NUM_DECODE = 5
NUM_REQUESTS = 100


def asks_of(rng: random.Random, within_s: float) -> list[Ask]:
    """Single turns that have nothing in common, spread over a while."""
    return [
        Ask(
            prompt=tuple(rng.choices(range(1000), k=rng.randint(4, 16))),
            max_tokens=rng.randint(8, 32),
            num_choices=1,
            at_s=rng.uniform(0.0, within_s),
            cancel_after_s=None,
            deadline_s=None,
            num_end_ids=0,
        )
        for _ in range(NUM_REQUESTS)
    ]


def run(seed: int, policy: str, within_s: float) -> CheckedCluster:
    cluster = new_cluster(seed, policy, 40, short_sighted=False, num_decode=NUM_DECODE)
    run_and_check(cluster, asks_of(random.Random(seed), within_s))
    return cluster


@pytest.mark.parametrize("policy", ["default", "fcfs"])
# All at once; as fast as prompts are computed; one after the other, mostly.
@pytest.mark.parametrize("within_s", [0.01, 1.0, 20.0])
@pytest.mark.parametrize("seed", range(3))
def test_each_decode_worker_gets_at_least_half_of_its_fair_share(
    seed: int, within_s: float, policy: str
) -> None:
    cluster = run(seed, policy, within_s)
    shares = Counter(finished.timings.decode_worker for finished in cluster.finished.values())
    assert shares.total() == NUM_REQUESTS
    assert len(shares) == NUM_DECODE, shares
    assert min(shares.values()) >= NUM_REQUESTS / NUM_DECODE / 2, shares
