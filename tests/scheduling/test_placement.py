"""Which worker gets a task."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from scheduling.ids import WorkerId
from scheduling.placement import Candidate, decode_preferences, prefill_preferences

WORKER = Candidate(
    worker_id=WorkerId("w"),
    compatibility="x",
    block_size=16,
    num_free_blocks=10,
    num_backlog_tokens=0,
    num_running=0,
)


def named(name: str, **changes: object) -> Candidate:
    return replace(WORKER, worker_id=WorkerId(name), **changes)  # type: ignore[arg-type]


def test_prefill_goes_to_the_least_backlog_then_the_most_free() -> None:
    workers = [
        named("busy", num_backlog_tokens=50),
        named("small", num_free_blocks=9),
        named("best"),
    ]
    chosen = prefill_preferences(workers, num_tokens=100)
    assert [c.worker_id for c in chosen] == ["best", "small", "busy"]


def test_a_full_or_backlogged_prefill_worker_is_left_out() -> None:
    behind = named("behind", num_backlog_tokens=100, max_backlog_tokens=100)
    workers = [named("full", num_free_blocks=6), behind]
    assert prefill_preferences(workers, num_tokens=97) == ()
    assert prefill_preferences(workers, num_tokens=96) == (workers[0],)


def test_preferences_share_one_block_size() -> None:
    workers = [named("a", num_free_blocks=20), named("b", block_size=32), named("c")]
    chosen = prefill_preferences(workers, num_tokens=10)
    assert [c.worker_id for c in chosen] == ["a", "c"]


def test_decode_goes_to_the_most_free_compatible_worker() -> None:
    workers = [
        named("other", compatibility="y", num_free_blocks=99),
        named("half", num_free_blocks=5),
        named("free"),
        named("full", num_free_blocks=4),
    ]
    chosen = decode_preferences(workers, num_blocks=5, compatibility="x")
    assert [c.worker_id for c in chosen] == ["free", "half"]


def test_a_cached_prompt_counts_as_done_but_not_more() -> None:
    workers = [named("cold"), named("warm", num_hit_blocks=5, num_backlog_tokens=159)]
    chosen = prefill_preferences(workers, num_tokens=100)
    assert [c.worker_id for c in chosen] == ["warm", "cold"], "it saves 80 tokens, counted twice"
    workers = [named("cold"), named("warm", num_hit_blocks=5, num_backlog_tokens=161)]
    chosen = prefill_preferences(workers, num_tokens=100)
    assert [c.worker_id for c in chosen] == ["cold", "warm"]


def test_a_prompt_that_is_just_being_computed_is_waited_for_rather_than_computed_again() -> None:
    workers = [named("idle"), named("on it", num_hit_blocks=6, num_backlog_tokens=96)]
    chosen = prefill_preferences(workers, num_tokens=96 + 4)
    assert chosen[0].worker_id == "on it"


def test_the_last_token_is_computed_even_where_everything_is_cached() -> None:
    assert named("w", num_hit_blocks=6).num_tokens_to_compute(96) == 16
    assert named("w", num_hit_blocks=6).num_tokens_to_compute(97) == 1


def test_decode_weighs_blocks_that_need_not_travel_against_room() -> None:
    workers = [named("free"), named("warm", num_free_blocks=7, num_hit_blocks=4)]
    assert decode_preferences(workers, 5, "x")[0].worker_id == "warm"
    workers = [named("free"), named("warm", num_free_blocks=6, num_hit_blocks=3)]
    assert decode_preferences(workers, 5, "x")[0].worker_id == "free"


@given(
    st.lists(st.integers(1, 500), min_size=30, max_size=60),
    st.integers(0, 30),
    st.integers(0, 3),
)
def test_a_prefix_that_everybody_has_does_not_keep_everybody_on_one_worker(
    tails: list[int], num_shared_blocks: int, first: int
) -> None:
    """One worker has the prefix from the start; the others get it with their first prompt."""
    backlog = [0, 0, 0, 0]
    has_it = [number == first for number in range(4)]
    num_given = [0, 0, 0, 0]
    longest = num_shared_blocks * 16 + max(tails)
    for tail in tails:
        workers = [
            named(
                str(number),
                num_free_blocks=10_000,
                num_backlog_tokens=backlog[number],
                num_hit_blocks=num_shared_blocks * has_it[number],
            )
            for number in range(4)
        ]
        num_tokens = num_shared_blocks * 16 + tail
        best = prefill_preferences(workers, num_tokens)[0]
        number = int(best.worker_id)
        backlog[number] += best.num_tokens_to_compute(num_tokens)
        has_it[number] = True
        num_given[number] += 1
        assert max(backlog) - min(backlog) <= 2 * longest
    if sum(tails) > 8 * longest:
        assert all(num_given)
