"""The pusher: never blocks its caller, answers every job once, isolates peers."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import structlog

from kvtransfer.batches import PushSettings
from kvtransfer.errors import (
    BacklogFull,
    DeviceFailed,
    LayoutMismatch,
    PeerGone,
    PusherClosed,
    PushFailed,
    StaleIncarnation,
    TransferCancelled,
    TransferTimeout,
)
from kvtransfer.lane import PushJob
from kvtransfer.protocol import BlockMoves, PushReceipt
from kvtransfer.pusher_testing import BLOCK_BYTES, PushingSide, wait_until
from kvtransfer.testing import PATIENCE_S, StallingCopy
from runtime.clock import ManualClock

MakeCluster = Callable[..., PushingSide]


@pytest.fixture
def make_cluster() -> Iterator[MakeCluster]:
    made: list[PushingSide] = []

    def make(**options: object) -> PushingSide:
        made.append(PushingSide(**options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for cluster in made:
        cluster.transport.release()
        assert cluster.pusher.close(PATIENCE_S)


def test_jobs_of_a_peer_run_in_order_on_its_thread_over_one_connection(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster(max_jobs_per_peer=32)
    receiver = cluster.receiver("decode-0")
    jobs = [cluster.job(receiver, block_id) for block_id in range(20)]
    for job in jobs:
        cluster.pusher.submit(job)
    outcomes = cluster.outcomes.wait(20)
    assert all(isinstance(outcome, PushReceipt) for outcome in outcomes)
    assert [job for job, _ in cluster.outcomes.all] == jobs
    assert len(cluster.transport.connects) == 1
    assert cluster.outcomes.threads == {"kv-push-decode-0"}
    assert receiver.buffer()[: 20 * BLOCK_BYTES] == cluster.source[: 20 * BLOCK_BYTES]


def test_a_full_queue_refuses_at_once_and_has_room_again_later(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(max_jobs_per_peer=2)
    receiver, other = cluster.receiver("decode-0"), cluster.receiver("decode-1")
    cluster.hold_lane(receiver)
    for block_id in range(2):
        assert cluster.pusher.has_room("decode-0")
        cluster.pusher.submit(cluster.job(receiver, block_id))
    assert not cluster.pusher.has_room("decode-0")
    with pytest.raises(BacklogFull) as caught:
        cluster.pusher.submit(cluster.job(receiver, 5))
    assert (caught.value.worker_id, caught.value.max_jobs) == ("decode-0", 2)
    assert cluster.pusher.has_room(other.export().worker_id)
    cluster.transport.release()
    cluster.outcomes.wait(3)
    assert cluster.pusher.has_room("decode-0")
    cluster.pusher.submit(cluster.job(receiver, 6))
    assert len(cluster.outcomes.wait(4)) == 4


def test_a_stalled_peer_does_not_hold_up_another(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    stalled, healthy = cluster.receiver("decode-0"), cluster.receiver("decode-1")
    held = cluster.hold_lane(stalled)
    quick = cluster.job(healthy)
    cluster.pusher.submit(quick)
    cluster.outcomes.wait(1)
    cluster.transport.release()
    cluster.outcomes.wait(2)
    assert [job for job, _ in cluster.outcomes.all] == [quick, held]


def test_a_gone_peer_fails_all_its_jobs_at_once_and_no_others(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(max_jobs_per_peer=32)
    doomed, healthy = cluster.receiver("decode-0"), cluster.receiver("decode-1")
    cluster.hold_lane(doomed)
    for block_id in range(8):
        cluster.pusher.submit(cluster.job(doomed, block_id))
    doomed.close()
    cluster.transport.release()
    outcomes = cluster.outcomes.wait(9)
    assert all(isinstance(outcome, PeerGone) for outcome in outcomes)
    # Only the first was tried; the connection is dropped with the peer.
    assert (len(cluster.transport.pushes), len(cluster.transport.connects)) == (1, 1)
    assert cluster.transport.num_closed_senders == 1
    cluster.pusher.submit(cluster.job(healthy))
    assert isinstance(cluster.outcomes.wait(10)[-1], PushReceipt)


def test_a_restarted_peer_gets_a_new_connection_and_its_old_jobs_fail(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    first = cluster.receiver("decode-0", 1)
    held = cluster.hold_lane(first)
    old = cluster.job(first, 1)
    cluster.pusher.submit(old)
    first.close()
    second = cluster.receiver("decode-0", 2)
    new = cluster.job(second, 2)
    cluster.pusher.submit(new)
    with pytest.raises(StaleIncarnation):
        cluster.pusher.submit(old)
    cluster.transport.release()
    cluster.outcomes.wait(3)
    assert [job for job, _ in cluster.outcomes.all] == [held, old, new]
    outcomes = [type(outcome) for _, outcome in cluster.outcomes.all]
    assert outcomes == [StaleIncarnation, StaleIncarnation, PushReceipt]
    assert [export.incarnation for export in cluster.transport.connects] == [1, 2]


def test_jobs_go_to_the_newest_life_that_was_named_even_if_an_older_one_still_answers(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    first, second = cluster.receiver("decode-0", 1), cluster.receiver("decode-0", 2)
    cluster.hold_lane(first)
    old, new = cluster.job(first, 1), cluster.job(second, 1)
    cluster.pusher.submit(old)
    cluster.pusher.submit(new)
    cluster.transport.release()
    outcomes = [type(outcome) for outcome in cluster.outcomes.wait(3)]
    assert outcomes == [PushReceipt, StaleIncarnation, PushReceipt]
    assert old.moves not in cluster.transport.pushes
    assert second.poll([1], new.moves.generations).is_complete


def test_a_connection_is_not_used_for_another_life(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    for incarnation in (1, 2):
        receiver = cluster.receiver("decode-0", incarnation)
        job = cluster.job(receiver)
        cluster.pusher.submit(job)
        cluster.outcomes.wait(incarnation)
        assert receiver.poll([0], job.moves.generations).is_complete
    assert cluster.transport.num_closed_senders == 1


def test_a_cancelled_job_is_not_begun_and_a_running_one_ends(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    receiver = cluster.receiver("decode-0")
    cluster.hold_lane(receiver)
    waiting = cluster.job(receiver, 1, "leaves")
    staying = cluster.job(receiver, 2, "stays")
    cluster.pusher.submit(waiting)
    cluster.pusher.submit(staying)
    cluster.pusher.cancel("leaves")
    cluster.pusher.cancel("holds")
    cluster.pusher.cancel("unknown")
    cluster.transport.release()
    outcomes = [type(outcome) for outcome in cluster.outcomes.wait(3)]
    assert outcomes == [TransferCancelled, TransferCancelled, PushReceipt]
    assert waiting.moves not in cluster.transport.pushes
    # A cancel concerns the jobs that exist; the id may be used again.
    cluster.pusher.submit(cluster.job(receiver, 3, "leaves"))
    assert isinstance(cluster.outcomes.wait(4)[-1], PushReceipt)


def test_a_running_copy_ends_and_its_later_batches_are_dropped(make_cluster: MakeCluster) -> None:
    stall = StallingCopy()
    cluster = make_cluster(
        push_settings=PushSettings(max_batch_bytes=BLOCK_BYTES, copy_bytes=stall)
    )
    receiver = cluster.receiver("decode-0")
    receiver.expect([0, 1, 2], [1, 1, 1])
    moves = BlockMoves("r/0", (0, 1, 2), (0, 1, 2), (1, 1, 1))
    cluster.pusher.submit(PushJob(receiver.export(), moves, 60.0))
    assert stall.has_begun.wait(PATIENCE_S)
    cluster.pusher.cancel("r/0")
    stall.may_end.set()
    (outcome,) = cluster.outcomes.wait(1)
    assert isinstance(outcome, TransferCancelled)
    assert outcome.num_blocks_done == 1
    assert receiver.poll([0, 1, 2], [1, 1, 1]).num_arrived == 1


def test_time_spent_in_the_queue_counts_against_the_job(make_cluster: MakeCluster) -> None:
    clock = ManualClock()
    cluster = make_cluster(clock=clock)
    receiver = cluster.receiver("decode-0")
    cluster.hold_lane(receiver)
    too_late = cluster.job(receiver, 1, timeout_s=2.0)
    cluster.pusher.submit(too_late)
    cluster.pusher.submit(cluster.job(receiver, 2, timeout_s=9.0))
    clock.advance(3.0)
    cluster.transport.release()
    _, late, in_time = cluster.outcomes.wait(3)
    assert isinstance(late, TransferTimeout)
    assert too_late.moves not in cluster.transport.pushes
    assert isinstance(in_time, PushReceipt)


def test_a_failed_connect_is_that_jobs_error_and_the_next_job_connects_anew(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    receiver = cluster.receiver("decode-0")
    cluster.transport.connect_errors.append(LayoutMismatch("another block size"))
    cluster.pusher.submit(cluster.job(receiver, 1))
    assert isinstance(cluster.outcomes.wait(1)[0], LayoutMismatch)
    cluster.pusher.submit(cluster.job(receiver, 2))
    assert isinstance(cluster.outcomes.wait(2)[1], PushReceipt)


def test_a_defect_fails_one_job_and_the_thread_lives_on(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    receiver = cluster.receiver("decode-0")
    cluster.transport.push_errors.append(ZeroDivisionError("a defect"))
    with structlog.testing.capture_logs() as lines:
        cluster.pusher.submit(cluster.job(receiver, 1))
        (failure,) = cluster.outcomes.wait(1)
    assert isinstance(failure, PushFailed)
    assert isinstance(failure.__cause__, ZeroDivisionError)
    assert "push_failed" in [line["event"] for line in lines]
    cluster.pusher.submit(cluster.job(receiver, 2))
    assert isinstance(cluster.outcomes.wait(2)[1], PushReceipt)


def test_a_connection_that_cannot_be_closed_keeps_no_job_from_its_answer(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    receiver = cluster.receiver("decode-0")
    cluster.transport.push_errors.append(PeerGone("decode-0", 1))
    cluster.transport.close_errors.append(DeviceFailed("an event", "700", "restart this worker"))
    with structlog.testing.capture_logs() as lines:
        cluster.pusher.submit(cluster.job(receiver, 1))
        assert isinstance(cluster.outcomes.wait(1)[0], PeerGone)
        cluster.pusher.submit(cluster.job(receiver, 2))
        assert isinstance(cluster.outcomes.wait(2)[1], PushReceipt)
    assert "kv_disconnect_failed" in [line["event"] for line in lines]


def test_a_defect_in_connecting_ahead_keeps_no_job_from_its_answer(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    receiver = cluster.receiver("decode-0")
    cluster.transport.connect_errors.append(OSError("no memory can be mapped"))
    with structlog.testing.capture_logs() as lines:
        cluster.pusher.prepare(receiver.export())
        wait_until(lambda: "kv_prepare_failed" in [line["event"] for line in lines])
        cluster.pusher.submit(cluster.job(receiver, 1))
        assert isinstance(cluster.outcomes.wait(1)[0], PushReceipt)


def test_a_callback_that_raises_does_not_stop_the_lane(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    receiver = cluster.receiver("decode-0")
    cluster.outcomes.must_fail_once = True
    with structlog.testing.capture_logs() as lines:
        for block_id in (0, 1):
            cluster.pusher.submit(cluster.job(receiver, block_id))
        assert [type(outcome) for outcome in cluster.outcomes.wait(2)] == [PushReceipt] * 2
    assert "push_callback_failed" in [line["event"] for line in lines]


def test_an_idle_lane_lets_go_of_a_dead_peers_memory(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(idle_check_s=0.001)
    receiver = cluster.receiver("decode-0")
    cluster.pusher.submit(cluster.job(receiver))
    cluster.outcomes.wait(1)
    receiver.close()
    wait_until(lambda: cluster.transport.num_closed_senders == 1)


def test_prepare_connects_without_a_job(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    cluster.pusher.prepare(cluster.receiver("decode-0").export())
    wait_until(lambda: len(cluster.transport.connects) == 1)


def test_a_transport_that_this_worker_lacks_is_a_clear_error(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    job = cluster.job(cluster.receiver("decode-0"))
    cluster.pusher.submit(replace(job, export=replace(job.export, transport="rdma")))
    assert "rdma" in str(cluster.outcomes.wait(1)[0])


def test_close_finishes_what_was_accepted(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(max_jobs_per_peer=32)
    receiver = cluster.receiver("decode-0")
    for block_id in range(10):
        cluster.pusher.submit(cluster.job(receiver, block_id))
    assert cluster.pusher.close(PATIENCE_S)
    assert cluster.pusher.close(PATIENCE_S)
    assert [type(outcome) for _, outcome in cluster.outcomes.all] == [PushReceipt] * 10
    assert cluster.transport.num_closed_senders == 1
    assert not cluster.pusher.has_room("decode-0")
    with pytest.raises(PusherClosed):
        cluster.pusher.submit(cluster.job(receiver, 11))


def test_close_cancels_what_does_not_drain_and_answers_it(make_cluster: MakeCluster) -> None:
    stall = StallingCopy()
    cluster = make_cluster(push_settings=PushSettings(copy_bytes=stall), cancel_timeout_s=0.01)
    receiver = cluster.receiver("decode-0")
    for block_id in range(3):
        cluster.pusher.submit(cluster.job(receiver, block_id))
    assert stall.has_begun.wait(PATIENCE_S)
    assert not cluster.pusher.close(0.0)  # bounded, though a copy still runs
    stall.may_end.set()
    running, *waiting = cluster.outcomes.wait(3)
    assert isinstance(running, PushReceipt)
    assert [type(outcome) for outcome in waiting] == [TransferCancelled] * 2


def test_a_lane_whose_peer_has_gone_ends_and_the_name_may_come_back(
    make_cluster: MakeCluster,
) -> None:
    clock = ManualClock()
    cluster = make_cluster(clock=clock, idle_check_s=0.001)
    receiver = cluster.receiver("decode-gone")
    cluster.pusher.submit(cluster.job(receiver))
    cluster.outcomes.wait(1)
    clock.advance(1000.0)
    assert lane_threads() == ["kv-push-decode-gone"]  # it lives, so its connection is kept
    receiver.close()
    wait_until(lambda: not lane_threads())
    again = cluster.receiver("decode-gone", 2)
    cluster.pusher.submit(cluster.job(again))
    assert isinstance(cluster.outcomes.wait(2)[-1], PushReceipt)


def lane_threads() -> list[str]:
    names = (thread.name for thread in threading.enumerate())
    return [name for name in names if name == "kv-push-decode-gone"]


def test_jobs_that_arrive_while_lanes_retire_are_all_answered(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(idle_check_s=0.0001, retire_after_s=0.0, max_jobs_per_peer=256)
    receiver = cluster.receiver("decode-0")
    receiver.close()  # nobody is there: a lane may retire after every job
    job = cluster.job(receiver)
    for count in range(1, 201):
        cluster.pusher.submit(job)
        if count % 10 == 0:
            cluster.outcomes.wait(count)
    assert all(isinstance(outcome, PeerGone) for outcome in cluster.outcomes.wait(200))
