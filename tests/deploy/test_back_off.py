"""How often and how fast a process is started again."""

from hypothesis import given
from hypothesis import strategies as st

from deploy.local.keep_alive import BackOff, DeathCount
from runtime.clock import ManualClock


def test_waits_double_up_to_their_limit_and_then_it_is_given_up() -> None:
    back_off = BackOff(first_delay_s=0.5, max_delay_s=3.0, max_deaths=5)
    assert [back_off.delay_s(deaths) for deaths in range(1, 7)] == [0.5, 1.0, 2.0, 3.0, 3.0, None]


def test_the_name_of_a_killed_worker_expires_before_it_is_given_up() -> None:
    back_off = BackOff()
    delays = [back_off.delay_s(deaths) or 0.0 for deaths in range(1, back_off.max_deaths + 1)]
    assert sum(delays) > 2 * 10.0  # lease_ttl_s of runtime/config.py


@given(st.integers(1, 10_000))
def test_no_wait_is_shorter_than_the_first_or_longer_than_the_last(num_deaths: int) -> None:
    delay_s = BackOff(max_deaths=10_000).delay_s(num_deaths)
    assert delay_s is not None
    assert 0.5 <= delay_s <= 8.0


def test_a_good_life_is_forgiven_the_deaths_before_it() -> None:
    clock = ManualClock()
    count = DeathCount(BackOff(first_delay_s=1.0, max_deaths=2, good_life_s=60.0), clock)
    assert (count.died(), count.died(), count.died()) == (1.0, 2.0, None)
    count.born()
    clock.advance(59.9)
    assert count.died() is None
    count.born()
    clock.advance(60.0)
    assert count.died() == 1.0
