"""Prompts that cannot wait take the room of answers that can; whoever waits goes on unharmed."""

import math
import random

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from cluster.memory_ledger import MemoryLedger
from router.core import RouterCore
from router.events import Action, Event, SendCommand
from router.state import RouterSettings
from runtime.clock import ManualClock
from scheduling.batch_time_recovery import Preemption
from scheduling.length_quantiles import OnlineQuantiles
from scheduling.messages import MakeRoom
from scheduling.policy import Policy
from scheduling.policy_settings import policy_of
from simulator.asks_testing import asks, deaths, prompts_of_families
from simulator.testing import Ask, CheckedCluster, Swapping, run_and_check

MIXED = ("mixed-0", "mixed-1")


class WatchedRouter(RouterCore):
    """Counts its wishes."""

    def __init__(self, policy: Policy, settings: RouterSettings) -> None:
        super().__init__(policy, OnlineQuantiles(pooling_samples=4), settings)
        self.num_wishes = 0

    def handle(self, event: Event, now: float) -> list[Action]:
        actions = super().handle(event, now)
        sent = (action.command for action in actions if isinstance(action, SendCommand))
        self.num_wishes += sum(isinstance(command, MakeRoom) for command in sent)
        return actions


def watched(
    seed: int,
    policy: str,
    num_blocks: int,
    num_mixed: int,
    swapping: Swapping,
    max_untold_tokens: int = 1,
) -> tuple[CheckedCluster, WatchedRouter]:
    """Every invariant of router, workers and their pools is checked after every event."""
    chosen = policy_of(policy)
    limits = RouterSettings(max_backlog_tokens=24, max_retries_per_task=100)
    router = WatchedRouter(chosen, limits)
    cluster = CheckedCluster(
        router,
        MemoryLedger(ManualClock()),
        random.Random(seed),
        num_swap_blocks=swapping.num_blocks,
        policy=chosen,
        preemption=swapping.preemption,
        max_untold_tokens=max_untold_tokens,
    )
    for worker_id in MIXED[:num_mixed]:
        cluster.start_worker(worker_id, "mixed", num_blocks)
    return cluster, router


goals = {
    "ttft_s": st.sampled_from([0.02, 0.1, 0.3, 1000.0]),
    "tpot_s": st.sampled_from([0.001, 1.0, 10.0, math.inf]),
}
crowds = st.lists(
    asks(
        prompt=prompts_of_families(num_families=4, max_shared=6, max_own=4, num_own_ids=4),
        max_tokens=st.integers(1, 24),
        at_s=st.floats(0, 0.5),
        cancel_after_s=st.none() | st.none() | st.floats(0, 0.4),
        deadline_s=st.none() | st.none() | st.floats(0.001, 1.5),
        num_end_ids=st.sampled_from([0, 0, 100]),
        **goals,
    ),
    min_size=8,
    max_size=24,
)
swappings = st.builds(
    Swapping, st.sampled_from([0, 6, 40]), preemption=st.sampled_from(list(Preemption))
)
policies = st.sampled_from(
    [
        "accelgen",
        "default+urgent_preempts=yes",
        "cacheopt+urgent_preempts=yes+parked_yields=yes",
        "ecoserve+is_decoupled=no+urgent_preempts=yes+parked_yields=yes",
    ]
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=crowds,
    seed=st.integers(0, 2**32),
    policy=policies,
    num_blocks=st.integers(9, 16),
    num_mixed=st.integers(1, 2),
    swapping=swappings,
    # Engines that only count tell of several tokens at once.
    max_untold_tokens=st.sampled_from([1, 8]),
    dying=st.just([]) | deaths(st.sampled_from(MIXED[:1]), within_s=0.4),
)
def test_no_token_and_no_block_is_lost_whoever_makes_room_leaves_or_dies(
    wanted: list[Ask],
    seed: int,
    policy: str,
    num_blocks: int,
    num_mixed: int,
    swapping: Swapping,
    max_untold_tokens: int,
    dying: list[tuple[str, float]],
) -> None:
    cluster, router = watched(seed, policy, num_blocks, num_mixed, swapping, max_untold_tokens)
    cluster.restart_workers(dying)
    run_and_check(cluster, wanted)
    event(f"asked for room: {router.num_wishes > 0}")


@pytest.mark.parametrize("num_swap_blocks", [40, 0])
def test_a_question_that_cannot_wait_is_answered_while_a_long_answer_waits(
    num_swap_blocks: int,
) -> None:
    """In host memory, or to be computed again."""
    long = Ask(tuple(range(40)), 300, 1, 0.0, None, None, 0, tpot_s=10.0)
    question = Ask(tuple(range(300, 600)), 1, 1, 0.1, None, None, 0, ttft_s=1.0)
    ttft_s, num_preemptions = {}, {}
    for choice in ("yes", "no"):
        policy = f"accelgen+urgent_preempts={choice}"
        cluster, router = watched(7, policy, 92, 1, Swapping(num_swap_blocks))
        run_and_check(cluster, [long, question])
        first, second = (cluster.finished[key].timings for key in sorted(cluster.finished))
        assert not second.num_preemptions
        ttft_s[choice], num_preemptions[choice] = second.ttft_s, first.num_preemptions
        assert (router.num_wishes > 0) == (choice == "yes")
    assert ttft_s["yes"] < ttft_s["no"]
    assert num_preemptions == {"yes": 1, "no": 0}
