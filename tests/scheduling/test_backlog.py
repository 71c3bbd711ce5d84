"""How many prompt tokens may lie in front of a worker."""

from scheduling.backlog import NO_LIMIT, UNTOLD_TOKENS, BacklogLimit


def test_every_worker_gets_prompts_for_two_of_its_own_iterations() -> None:
    limit = BacklogLimit()
    assert limit.tokens("prefill", 512) == 1024
    assert limit.tokens("mixed", 8192) == 16384


def test_a_worker_that_does_not_tell_its_iterations_gets_what_all_got_before() -> None:
    assert BacklogLimit().tokens("prefill", 0) == UNTOLD_TOKENS == 1024


def test_a_limit_that_is_set_holds_for_every_worker() -> None:
    assert BacklogLimit(24).tokens("prefill", 512) == 24
    assert BacklogLimit(24).tokens("mixed", 0) == 24


def test_mixed_workers_that_order_prompts_themselves_get_all_that_they_have_room_for() -> None:
    limit = BacklogLimit(is_open_on_mixed=True)
    assert limit.tokens("mixed", 512) == NO_LIMIT
    assert limit.tokens("prefill", 512) == 1024
