"""The router's view of its workers: what they can hold, and who may be asked."""

from dataclasses import replace

import pytest

from router.events import IntroducePeer
from router.fleet import Fleet
from router.preferences import Preferences
from router.testing import BLOCK_SIZE, hello_of
from scheduling.batch_time_online import PassTimeError
from scheduling.errors import CanNeverFit, NoWorkerAvailable
from scheduling.ids import Incarnation, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import WorkerLoad


def fleet_of(**num_blocks_by_name: int) -> Fleet:
    fleet = Fleet()
    for name, num_blocks in num_blocks_by_name.items():
        fleet.add(hello_of(name.replace("_", "-"), num_blocks))
    return fleet


def test_the_longest_request_is_what_the_best_pair_holds() -> None:
    fleet = fleet_of(prefill_0=8, prefill_1=20, decode_0=12)
    assert fleet.max_request_tokens() == 12 * BLOCK_SIZE
    fleet.add(hello_of("decode-1", 100, compatibility="other"))
    assert fleet.max_request_tokens() == 12 * BLOCK_SIZE
    fleet.remove(WorkerId("decode-0"), 0.0)
    assert fleet.max_request_tokens() == 0


def test_what_fits_no_pair_is_refused_and_what_has_no_pair_waits_for_one() -> None:
    fleet = fleet_of(prefill_0=8, decode_0=4)
    fleet.check_can_fit(16, 0.0)
    with pytest.raises(CanNeverFit):
        fleet.check_can_fit(17, 0.0)
    with pytest.raises(NoWorkerAvailable, match="no prefill worker"):
        fleet_of(decode_0=4).check_can_fit(1, 0.0)


def test_a_draining_worker_counts_for_nothing_new() -> None:
    fleet = fleet_of(prefill_0=8, decode_0=8, decode_1=4)
    view = fleet.get(WorkerId("decode-0"))
    assert view is not None
    assert fleet.max_request_tokens() == 32
    fleet.take_load(view, WorkerLoad(8, 0, 0, 0, is_draining=True), 0.0)
    assert fleet.max_request_tokens() == 16
    assert [c.worker_id for c in fleet.decode_candidates(0.0, "general")] == ["decode-1"]


def test_a_prompt_goes_where_its_whole_answer_has_room() -> None:
    fleet = fleet_of(prefill_0=8, decode_0=4)
    fleet.add(hello_of("prefill-1", 8, compatibility="other"))
    fleet.add(hello_of("decode-1", 8, compatibility="other"))
    preferences = Preferences(fleet)

    def found(num_tokens_at_most: int) -> list[str]:
        views = preferences.prefill(0.0, 1, num_tokens_at_most, prefix=None)
        return [view.hello.worker_id for view in views]

    assert found(16) == ["prefill-0", "prefill-1"]
    assert found(17) == ["prefill-1"]
    assert found(33) == []


def test_a_worker_that_refused_rests_and_one_that_starves_gets_nothing() -> None:
    fleet = fleet_of(prefill_0=8, decode_0=8)
    until_s = fleet.pause(WorkerId("decode-0"), 1.0)
    assert fleet.next_resume_at(1.0) == until_s
    assert fleet.decode_candidates(1.0, "general") == ()
    assert len(fleet.decode_candidates(until_s, "general")) == 1
    assert fleet.next_resume_at(until_s) is None
    view = fleet.get(WorkerId("decode-0"))
    assert view is not None
    view.is_starving = True
    assert fleet.decode_candidates(until_s, "general") == ()


def test_free_blocks_are_the_smaller_of_report_and_own_promises_less_the_growth_reserve() -> None:
    fleet = fleet_of(decode_0=32)
    view = fleet.get(WorkerId("decode-0"))
    assert view is not None
    (general,) = fleet.decode_candidates(0.0, "general")
    (growth,) = fleet.decode_candidates(0.0, "growth")
    assert (general.num_free_blocks, growth.num_free_blocks) == (30, 32)
    view.num_promised_blocks = 10
    fleet.take_load(view, WorkerLoad(25, 0, 0, 0), 0.0)
    assert fleet.decode_candidates(0.0, "growth")[0].num_free_blocks == 22
    fleet.take_load(view, WorkerLoad(5, 0, 0, 0), 0.0)
    assert fleet.decode_candidates(0.0, "growth")[0].num_free_blocks == 5
    assert fleet.decode_candidates(0.0, "general")[0].num_free_blocks == 3


def test_new_tasks_leave_free_what_the_worker_keeps_for_growth() -> None:
    fleet = Fleet()
    fleet.add(hello_of("decode-0", 32, num_growth_blocks=0))
    fleet.add(hello_of("decode-1", 32, num_growth_blocks=16))
    found = {c.worker_id: c.num_free_blocks for c in fleet.decode_candidates(0.0, "general")}
    assert found == {"decode-0": 32, "decode-1": 16}
    assert {c.num_free_blocks for c in fleet.decode_candidates(0.0, "growth")} == {32}


def export_of(worker_id: str) -> KvExport:
    return KvExport("loopback", worker_id, 8, 64, WorkerId(worker_id), Incarnation(1), "h")


def test_prefill_workers_hear_of_every_pool_they_can_push_into_whoever_comes_first() -> None:
    pools = {name: export_of(name) for name in ("decode-0", "decode-1", "decode-9")}
    fleet = Fleet()
    prefill, early, late = (
        hello_of("prefill-0"),
        hello_of("decode-0", export=pools["decode-0"]),
        hello_of("decode-1", export=pools["decode-1"]),
    )
    stranger = hello_of("decode-9", export=pools["decode-9"], compatibility="other")
    told: list[IntroducePeer] = []
    for hello in (early, stranger, prefill, late):
        fleet.add(hello)
        told += fleet.introductions(hello)
    assert told == [
        IntroducePeer(WorkerId("prefill-0"), pools["decode-0"]),
        IntroducePeer(WorkerId("prefill-0"), pools["decode-1"]),
    ]


def test_the_largest_new_task_is_one_of_a_worker_that_could_take_it() -> None:
    fleet = fleet_of(decode_0=16, decode_1=64)
    fleet.add(hello_of("decode-2", 160, compatibility="other"))
    assert fleet.max_general_blocks("same") == 60
    view = fleet.get(WorkerId("decode-1"))
    assert view is not None
    fleet.take_load(view, WorkerLoad(64, 0, 0, 0, is_draining=True), 0.0)
    assert fleet.max_general_blocks("same") == 15
    assert fleet.max_general_blocks("nobody") == 0


def test_what_a_worker_told_of_its_model_of_passes_is_kept_while_it_says_nothing_new() -> None:
    fleet = fleet_of(decode_0=8)
    view = fleet.get(WorkerId("decode-0"))
    assert view is not None
    error = PassTimeError(64, 0.02, 0.1)
    fleet.take_load(view, WorkerLoad(8, 0, 0, 0, pass_time_error=error), 0.0)
    fleet.take_load(view, WorkerLoad(7, 1, 0, 0), 0.0)
    assert view.pass_time_error == error


def test_of_a_large_fleet_some_are_looked_at_and_in_the_end_all() -> None:
    fleet = fleet_of(decode_0=4, decode_1=4, decode_2=4, decode_3=4, decode_4=4)

    def some(most: int) -> list[str]:
        return [view.hello.worker_id.removeprefix("decode-") for view in fleet.some(most)]

    assert some(5) == some(9) == ["0", "1", "2", "3", "4"], "a small one is looked at whole"
    assert [some(3), some(3)] == [["0", "1", "2"], ["3", "4", "0"]]
    fleet.remove(WorkerId("decode-1"), 0.0)
    assert [some(3), some(3)] == [["0", "2", "3"], ["4", "0", "2"]]
    for view in fleet.some(2):  # who has seen enough stops; the next look goes on behind
        assert view.hello.worker_id == "decode-3"
        break
    assert some(2) == ["4", "0"]


def test_a_worker_is_looked_at_again_when_newcomers_get_other_times_and_not_with_every_frame() -> (
    None
):
    fleet = fleet_of(decode_0=8)
    view = fleet.get(WorkerId("decode-0"))
    assert view is not None
    load = WorkerLoad(4, 0, 0, 0, num_parked=1)
    seen = []
    for now, due_in_s in ((0.0, None), (1.0, None), (2.0, 5.0), (3.02, 4.0), (4.0, 9.0)):
        fleet.take_load(view, replace(load, parked_due_in_s=due_in_s), now)
        seen.append(bool(fleet.take_touched()))
    assert seen == [True, False, True, False, True]
