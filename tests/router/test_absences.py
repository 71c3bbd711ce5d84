"""When a caller that found nobody should ask again."""

import pytest

from router.absences import SHORTEST_WAIT_S, Absences
from router.fleet import Fleet
from router.testing import hello_of
from scheduling.errors import NoWorkerAvailable
from scheduling.ids import WorkerId


def absences_of(**start_s: float) -> Absences:
    """Gone at 100 s: workers that took so long to start."""
    absences = Absences()
    for name, taken_s in start_s.items():
        absences.went(hello_of(name.replace("_", "-"), start_s=taken_s), 100.0)
    return absences


def test_a_worker_that_went_is_awaited_for_as_long_as_its_start_took() -> None:
    absences = absences_of(decode_0=40.0)
    assert absences.wait_s({"prefill"}, 100.0) == 40.0
    assert absences.wait_s({"prefill"}, 130.0) == 10.0
    # Overdue: it may be back at any moment, or never.
    assert absences.wait_s({"prefill"}, 200.0) == SHORTEST_WAIT_S
    absences.came(WorkerId("decode-0"))
    assert absences.wait_s({"prefill"}, 100.0) == SHORTEST_WAIT_S


def test_of_several_the_first_is_awaited_and_of_every_missing_role_one() -> None:
    absences = absences_of(decode_0=40.0, decode_1=20.0, prefill_0=30.0)
    assert absences.wait_s({"prefill"}, 100.0) == 20.0
    assert absences.wait_s(set(), 100.0) == 30.0


def test_a_worker_that_went_again_is_counted_from_then_on() -> None:
    absences = absences_of(decode_0=40.0)
    absences.went(hello_of("decode-0", life=2, start_s=5.0), 120.0)
    assert absences.wait_s(set(), 120.0) == 5.0


def test_who_never_said_how_long_it_took_is_awaited_as_shortly_as_may_be() -> None:
    assert absences_of(decode_0=0.0).wait_s(set(), 100.0) == SHORTEST_WAIT_S


def test_names_that_never_come_back_are_forgotten() -> None:
    absences = Absences()
    for number in range(1000):
        absences.went(hello_of(f"decode-{number}", start_s=900.0 - number / 2), 0.0)
    # Only late ones are left, whose start took less.
    assert absences.wait_s(set(), 0.0) < 500.0
    absences = absences_of(**{f"decode_{number}": 2.0 for number in range(1000)})
    for number in range(744, 1000):
        absences.came(WorkerId(f"decode-{number}"))
    assert absences.wait_s(set(), 100.0) == SHORTEST_WAIT_S


def test_a_refused_caller_is_told_when_the_lost_worker_may_be_back() -> None:
    fleet = Fleet()
    for name in ("prefill-0", "decode-0"):
        fleet.add(hello_of(name, start_s=25.0))
    assert fleet.retry_after_s(50.0) == SHORTEST_WAIT_S
    fleet.remove(WorkerId("decode-0"), 50.0)
    with pytest.raises(NoWorkerAvailable) as refused:
        fleet.check_can_fit(1, 60.0)
    assert refused.value.retry_after_s == 15.0
    # A connection may have broken, and be mended in a moment.
    with pytest.raises(NoWorkerAvailable) as refused:
        fleet.check_can_fit(1, 50.5)
    assert refused.value.retry_after_s == SHORTEST_WAIT_S
    assert fleet.retry_after_s(50.5) == 24.5
