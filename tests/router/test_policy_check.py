"""A router notices workers that were started with another policy."""

from router.fleet import Fleet
from router.policy_check import PolicyCheck, num_deciding_otherwise
from router.testing import hello_of


def test_each_life_of_a_worker_with_another_policy_is_told_of_once() -> None:
    check = PolicyCheck("fcfs")
    assert check.is_news(hello_of("decode-0", policy="default"))
    assert not check.is_news(hello_of("decode-0", policy="default")), "it connected again"
    assert check.is_news(hello_of("decode-1", policy="default"))
    assert check.is_news(hello_of("decode-0", life=2, policy="default"))


def test_a_change_of_the_policy_makes_it_another_one() -> None:
    check = PolicyCheck("default+victims=last-arrived")
    assert check.is_news(hello_of("decode-0", policy="default"))
    assert not check.is_news(hello_of("decode-1", policy="default+victims=last-arrived"))


def test_a_worker_too_old_to_say_by_what_it_decides_is_not_blamed() -> None:
    assert not PolicyCheck("fcfs").is_news(hello_of("decode-0", policy=""))


def test_status_counts_the_workers_of_another_policy() -> None:
    fleet = Fleet()
    for name, policy in (("decode-0", "fcfs"), ("decode-1", "default"), ("prefill-0", "")):
        fleet.add(hello_of(name, policy=policy))
    assert num_deciding_otherwise(fleet, "fcfs") == 1
    assert num_deciding_otherwise(fleet, "sarathi") == 2
