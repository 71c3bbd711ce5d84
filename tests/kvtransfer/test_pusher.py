"""The pusher: never blocks its caller, answers every job once, isolates peers."""

import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from kvtransfer.errors import (
    BacklogFull,
    LayoutMismatch,
    PeerGone,
    PusherClosed,
    PushFailed,
    StaleIncarnation,
    TransferCancelled,
    TransferTimeout,
)
from kvtransfer.lane import LaneSettings, PushJob, PushOutcome
from kvtransfer.loopback import LoopbackTransport
from kvtransfer.protocol import BlockMoves, KvReceiver, PushReceipt
from kvtransfer.pusher import Pusher
from kvtransfer.sending import PushSettings
from kvtransfer.testing import PATIENCE_S, FaultyTransport, StallingCopy, patterned_pool
from runtime.clock import Clock, ManualClock, MonotonicClock

BLOCK_BYTES = 256
NUM_BLOCKS = 32


class Outcomes:
    """Collects callbacks and waits for them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.all: list[tuple[PushJob, PushOutcome]] = []
        self.threads: set[str] = set()
        self.must_fail_once = False

    def __call__(self, job: PushJob, outcome: PushOutcome) -> None:
        with self._changed:
            self.all.append((job, outcome))
            self.threads.add(threading.current_thread().name)
            self._changed.notify_all()
            if self.must_fail_once:
                self.must_fail_once = False
                raise ZeroDivisionError("a defect of the callback")

    def wait(self, count: int) -> list[PushOutcome]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.all) >= count, PATIENCE_S)
            return [outcome for _, outcome in self.all]


class Cluster:
    """One pusher in front of loopback receivers."""

    def __init__(
        self,
        push_settings: PushSettings | None = None,
        clock: Clock | None = None,
        max_jobs_per_peer: int = 4,
        idle_check_s: float = 60.0,
        cancel_timeout_s: float = PATIENCE_S,
    ) -> None:
        self.transport = FaultyTransport(LoopbackTransport(push_settings))
        self.outcomes = Outcomes()
        self.source = patterned_pool(NUM_BLOCKS, BLOCK_BYTES, 5)
        self.pusher = Pusher(
            {"loopback": self.transport},
            memoryview(self.source),
            self.outcomes,
            LaneSettings(
                "prefill-0#1", BLOCK_BYTES, max_jobs_per_peer, idle_check_s, cancel_timeout_s
            ),
            clock or MonotonicClock(),
        )
        self._generations = itertools.count(1)

    def receiver(self, worker_id: str, incarnation: int = 1) -> KvReceiver:
        return self.transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, worker_id, incarnation)

    def job(
        self,
        receiver: KvReceiver,
        block_id: int = 0,
        transfer_id: str = "r/0",
        timeout_s: float = 60.0,
    ) -> PushJob:
        """A push of one block that the receiver grants now."""
        generation = next(self._generations)
        receiver.expect([block_id], [generation])
        moves = BlockMoves(transfer_id, (block_id,), (block_id,), (generation,))
        return PushJob(receiver.export(), moves, timeout_s)

    def hold_lane(self, receiver: KvReceiver, block_id: int = NUM_BLOCKS - 1) -> PushJob:
        """Occupy the lane's thread until `transport.release`."""
        worker_id = receiver.export().worker_id
        self.transport.hold(worker_id)
        job = self.job(receiver, block_id, "holds")
        self.pusher.submit(job)
        self.transport.wait_until_held(worker_id)
        return job


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_at_s = MonotonicClock().now() + PATIENCE_S
    while not condition():
        assert MonotonicClock().now() < deadline_at_s


MakeCluster = Callable[..., Cluster]


@pytest.fixture
def make_cluster() -> Iterator[MakeCluster]:
    made: list[Cluster] = []

    def make(**options: object) -> Cluster:
        made.append(Cluster(**options))  # type: ignore[arg-type]
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
    make_cluster: MakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = make_cluster()
    receiver = cluster.receiver("decode-0")
    cluster.transport.push_errors.append(ZeroDivisionError("a defect"))
    cluster.pusher.submit(cluster.job(receiver, 1))
    (failure,) = cluster.outcomes.wait(1)
    assert isinstance(failure, PushFailed)
    assert isinstance(failure.__cause__, ZeroDivisionError)
    assert "push_failed" in caplog.text
    cluster.pusher.submit(cluster.job(receiver, 2))
    assert isinstance(cluster.outcomes.wait(2)[1], PushReceipt)


def test_a_callback_that_raises_does_not_stop_the_lane(
    make_cluster: MakeCluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = make_cluster()
    receiver = cluster.receiver("decode-0")
    cluster.outcomes.must_fail_once = True
    for block_id in (0, 1):
        cluster.pusher.submit(cluster.job(receiver, block_id))
    assert [type(outcome) for outcome in cluster.outcomes.wait(2)] == [PushReceipt] * 2
    assert "push_callback_failed" in caplog.text


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


def test_a_forgotten_peer_is_disconnected_and_its_jobs_are_cancelled(
    make_cluster: MakeCluster,
) -> None:
    cluster = make_cluster()
    receiver = cluster.receiver("decode-0")
    cluster.hold_lane(receiver)
    cluster.pusher.submit(cluster.job(receiver, 1))
    cluster.pusher.forget_peer("decode-0")
    cluster.pusher.forget_peer("decode-0")
    cluster.transport.release()
    outcomes = cluster.outcomes.wait(2)
    assert all(isinstance(outcome, TransferCancelled) for outcome in outcomes)
    cluster.pusher.submit(cluster.job(receiver, 2))  # the name may come back
    assert isinstance(cluster.outcomes.wait(3)[-1], PushReceipt)
