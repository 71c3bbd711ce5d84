"""Silence of a peer, as told by a listener that may stand still itself."""

from hypothesis import given
from hypothesis import strategies as st

from runtime.silence import Silence

INTERVAL_S, LIMIT_S = 0.5, 3.0


def looks(silence: Silence, *instants: float) -> list[bool]:
    return [silence.look(now) for now in instants]


def test_a_peer_that_says_nothing_is_given_up_after_the_limit_and_not_before() -> None:
    silence = Silence(INTERVAL_S, LIMIT_S, 10.0)
    assert looks(silence, *(10.5 + 0.5 * n for n in range(7))) == [False] * 6 + [True]


def test_whatever_is_heard_begins_the_wait_anew() -> None:
    silence = Silence(INTERVAL_S, LIMIT_S, 0.0)
    assert not any(looks(silence, 0.9, 1.8, 2.7))
    silence.heard()
    assert not any(looks(silence, 3.6, 4.5, 5.4))


def test_a_listener_that_stood_still_does_not_blame_its_peer() -> None:
    """It was stopped for an hour; what the peer said meanwhile lies unread."""
    silence = Silence(INTERVAL_S, LIMIT_S, 0.0)
    assert looks(silence, 0.5, 3600.0) == [False, False]
    assert silence.silent_s == 1.5


@given(st.lists(st.floats(0.0, 100.0), max_size=50))
def test_silence_never_counts_more_than_two_intervals_a_look(gaps: list[float]) -> None:
    silence, now = Silence(INTERVAL_S, LIMIT_S, 0.0), 0.0
    for number, gap in enumerate(gaps, start=1):
        now += gap
        silence.look(now)
        assert silence.silent_s <= min(now, number * 2 * INTERVAL_S) + 1e-9
