"""Which worker gets a task."""

from dataclasses import replace

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
    chosen = prefill_preferences(workers, num_tokens=100, max_backlog_tokens=100)
    assert [c.worker_id for c in chosen] == ["best", "small", "busy"]


def test_a_full_or_backlogged_prefill_worker_is_left_out() -> None:
    workers = [named("full", num_free_blocks=6), named("behind", num_backlog_tokens=100)]
    assert prefill_preferences(workers, num_tokens=97, max_backlog_tokens=100) == ()
    assert prefill_preferences(workers, num_tokens=96, max_backlog_tokens=100) == (workers[0],)


def test_preferences_share_one_block_size() -> None:
    workers = [named("a", num_free_blocks=20), named("b", block_size=32), named("c")]
    chosen = prefill_preferences(workers, num_tokens=10, max_backlog_tokens=1)
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
