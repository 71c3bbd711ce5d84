"""Workers kept in order: the same ones are preferred as by a look at all of them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from router.events import GENERAL, GROWTH, Claim, Share
from router.fleet import Fleet
from router.leg import Leg
from router.preferences import MAX_PREFERENCES, Preferences
from router.testing import hello_of, plain_decode, plain_mixed, plain_prefill
from router.worker_view import WorkerView
from scheduling.block_pool import num_blocks_for
from scheduling.ids import TaskId, WorkerId
from scheduling.messages import Admission, WorkerLoad
from scheduling.prefix_chain import PromptPrefix
from scheduling.prefix_index import PrefixChanges

PROMPT = tuple(range(40))
SHARES: tuple[Share, ...] = (GENERAL, GROWTH)


@dataclass(frozen=True)
class Change:
    """What becomes of one worker."""

    number: int
    load: WorkerLoad
    num_promised_blocks: int
    num_backlog_tokens: int
    last_taken: int
    paused_until_s: float
    is_starving: bool
    num_parked: int
    num_cached_blocks: int
    is_gone: bool


ROLES = ("prefill", "decode", "mixed")
loads = st.builds(
    WorkerLoad,
    num_free_blocks=st.integers(0, 20),
    num_running=st.integers(0, 3),
    num_waiting=st.just(0),
    num_backlog_tokens=st.just(0),
    num_parked=st.sampled_from([0, 0, 0, 1]),
    parked_due_in_s=st.sampled_from([None, -1.0, 0.5, 3.0, 8.0]),
    admission=st.sampled_from([Admission.OPEN, Admission.OPEN, Admission.CORDONED]),
)
changes = st.builds(
    Change,
    number=st.integers(0, 11),
    load=loads,
    num_promised_blocks=st.integers(0, 20),
    num_backlog_tokens=st.sampled_from([0, 0, 10, 30]),
    last_taken=st.integers(0, 3),
    paused_until_s=st.sampled_from([0.0, 0.0, 2.0]),
    is_starving=st.sampled_from([False, False, True]),
    num_parked=st.sampled_from([0, 0, 1]),
    num_cached_blocks=st.integers(0, 10),
    is_gone=st.sampled_from([False, False, False, True]),
)


def apply(fleet: Fleet, view: WorkerView, change: Change) -> None:
    fleet.take_load(view, change.load, 0.0)
    view.num_promised_blocks = change.num_promised_blocks
    view.num_backlog_tokens = change.num_backlog_tokens
    view.last_taken = change.last_taken
    view.paused_until_s = change.paused_until_s
    view.is_starving = change.is_starving
    fleet.touch(view)
    for number in range(change.num_parked):
        task_id = TaskId(f"parked-{number}")
        view.parked.push(task_id, (0.0,))
        view.decode_legs[task_id] = Leg(Claim(task_id, "decode", 1), 0, parked_due_at_s=4.0)
    fleet.note_parked(view)
    keys = PromptPrefix(PROMPT).keys(view.hello.block_size)[: change.num_cached_blocks]
    view.prefixes.apply(PrefixChanges(keys, ()))


def names(views: Iterable[WorkerView]) -> list[str]:
    return [view.hello.worker_id for view in views]


@settings(deadline=None, max_examples=300)
@given(
    roles=st.lists(st.sampled_from(ROLES), min_size=1, max_size=12),
    block_sizes=st.sampled_from([(4,), (4, 8)]),
    compatibilities=st.sampled_from([("same",), ("same", "other")]),
    batch_limits=st.sampled_from([(12,), (5, 100), (100, 5, 12)]),
    steps=st.lists(st.lists(changes, max_size=6), min_size=1, max_size=4),
    due_at_s=st.sampled_from([0.0, 2.0, 5.0, math.inf]),
    num_tokens=st.integers(1, 60),
    num_more_tokens=st.integers(1, 40),
    has_prefix=st.booleans(),
)
def test_the_first_preferences_are_those_of_a_look_at_every_worker(
    roles: list[str],
    block_sizes: tuple[int, ...],
    compatibilities: tuple[str, ...],
    batch_limits: tuple[int, ...],
    steps: list[list[Change]],
    due_at_s: float,
    num_tokens: int,
    num_more_tokens: int,
    has_prefix: bool,
) -> None:
    fleet = Fleet()
    preferences = Preferences(fleet)
    hellos = [
        replace(
            hello_of(f"{role}-{number}", 20, num_growth_blocks=number % 3),
            block_size=block_sizes[number % len(block_sizes)],
            compatibility=compatibilities[number // 2 % len(compatibilities)],
            # Those that are busy at all have 10 or 30 tokens in front of them.
            max_num_batched_tokens=batch_limits[number % len(batch_limits)],
        )
        for number, role in enumerate(roles)
    ]
    for hello in hellos:
        fleet.add(hello)
    prefix = PromptPrefix(PROMPT if has_prefix else ())

    def num_blocks_for_size(size: int) -> int:
        return num_blocks_for(num_tokens + num_more_tokens, size)

    for step in steps:
        for change in step:
            hello = hellos[change.number % len(hellos)]
            view = fleet.get(WorkerId(hello.worker_id))
            if view is None:
                fleet.add(hello)
            elif change.is_gone:
                fleet.remove(hello.worker_id, 0.0)
            else:
                apply(fleet, view, change)
        preferences.check_invariants()
        prompt = (1.0, num_tokens, num_tokens + num_more_tokens, prefix)
        plain = plain_prefill(fleet, *prompt)[:MAX_PREFERENCES]
        assert names(preferences.prefill(*prompt)) == [c.worker_id for c in plain]
        in_place = (*prompt, num_blocks_for_size)
        plain = plain_mixed(fleet, *in_place, due_at_s=due_at_s)[:MAX_PREFERENCES]
        found = preferences.mixed(*in_place, due_at_s=due_at_s)
        assert names(found) == [c.worker_id for c in plain]
        for share in SHARES:
            task = (1.0, num_blocks_for_size(4), "same", share, prefix, due_at_s)
            plain = plain_decode(fleet, *task)[:MAX_PREFERENCES]
            assert names(preferences.decode(*task)) == [c.worker_id for c in plain]


def test_a_task_is_asked_for_on_so_many_workers_and_no_more() -> None:
    fleet = Fleet()
    preferences = Preferences(fleet)
    for number in range(100):
        fleet.add(hello_of(f"mixed-{number:02}", 20))
    found = preferences.mixed(0.0, 4, 8, None, lambda size: 2)
    assert names(found) == [f"mixed-{number:02}" for number in range(8)]
