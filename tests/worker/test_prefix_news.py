"""Every router hears of every cached prefix: all at first, then what changes."""

from scheduling.prefix_chain import PrefixKey
from scheduling.prefix_index import PrefixChanges
from scheduling.worker_events import SessionId
from worker.prefix_news import PrefixNews

ONE, TWO = SessionId(1), SessionId(2)


def keys(*numbers: int) -> tuple[PrefixKey, ...]:
    return tuple(map(PrefixKey, numbers))


def test_a_newcomer_hears_everything_and_others_only_what_is_new() -> None:
    news = PrefixNews()
    news.open(ONE)
    news.note(PrefixChanges(added=keys(1, 2)))
    assert news.take(ONE) == PrefixChanges(keys(1, 2), (), is_snapshot=True)
    news.note(PrefixChanges(added=keys(3), removed=keys(1)))
    news.open(TWO)
    first = news.take(TWO)
    assert first is not None
    assert (set(first.added), first.removed, first.is_snapshot) == ({2, 3}, (), True)
    assert news.take(ONE) == PrefixChanges(keys(3), keys(1))


def test_where_nothing_changed_nothing_is_sent() -> None:
    news = PrefixNews()
    news.open(ONE)
    assert not news.is_waiting(ONE)
    assert news.take(ONE) is None
    news.note(PrefixChanges(added=keys(1)))
    assert news.is_waiting(ONE)
    news.note(PrefixChanges(removed=keys(1)))
    assert news.take(ONE) is None


def test_a_router_that_left_is_forgotten() -> None:
    news = PrefixNews()
    news.open(ONE)
    news.close(ONE)
    news.close(ONE)
    news.note(PrefixChanges(added=keys(1)))
    assert not news.is_waiting(ONE)
    assert news.take(ONE) is None
