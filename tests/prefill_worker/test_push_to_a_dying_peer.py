"""A decode worker that dies in the middle of a push, over the real lanes, in each overlap."""

import queue

import pytest

from kvtransfer.lane import LaneSettings
from kvtransfer.loopback import LoopbackTransport
from kvtransfer.pusher import Pusher
from kvtransfer.testing import FaultyTransport, patterned_pool
from prefill_worker.core import PrefillCore, PrefillSettings
from runtime.clock import MonotonicClock
from scheduling.ids import BlockId, Generation, TaskId
from scheduling.kv_export import KvTarget
from scheduling.messages import (
    KvPushed,
    PushTo,
    Report,
    SequenceSpec,
    StartPrefill,
    TaskFailed,
    TaskReleased,
)
from scheduling.push_pacing import KvOverlap
from scheduling.sampling import SamplingParams, StopParams
from scheduling.worker_events import (
    CancelPush,
    CommandArrived,
    Push,
    SampledOutput,
    SendReport,
    SessionId,
    StepFinished,
    WorkerAction,
    WorkerEvent,
)
from worker.kv_push import KvPush

PATIENCE_S = 20.0
NUM_BLOCKS, BLOCK_BYTES, BLOCK_SIZE = 64, 64, 4
PEER = "decode-0"


class Worker:
    """A core and its pushes; a pass takes no time."""

    def __init__(self, overlap: KvOverlap) -> None:
        settings = PrefillSettings(
            NUM_BLOCKS, BLOCK_SIZE, 4, 8, prefix_caching=False, kv_overlap=overlap
        )
        self.core = PrefillCore(settings)
        self.transport = FaultyTransport(LoopbackTransport())
        self.receiver = self.transport.create_receiver(NUM_BLOCKS, BLOCK_BYTES, PEER, 1)
        self.source = patterned_pool(NUM_BLOCKS, BLOCK_BYTES, seed=1)
        self.inbox: queue.SimpleQueue[WorkerEvent] = queue.SimpleQueue()
        self.kv = KvPush(self.inbox.put, PATIENCE_S)
        self.pusher = Pusher(
            {self.transport.name: self.transport},
            memoryview(self.source),
            self.kv.on_done,
            LaneSettings("prefill-0#1", BLOCK_BYTES),
            MonotonicClock(),
        )
        self.kv.attach(self.pusher)
        self.reports: list[Report] = []
        self.now = 0.0

    def perform(self, actions: list[WorkerAction]) -> None:
        for action in actions:
            if isinstance(action, Push | CancelPush):
                self.kv.perform(action)
            elif isinstance(action, SendReport):
                self.reports.append(action.report)
        self.core.check_invariants()

    def send(self, task: TaskId, num_blocks: int) -> None:
        blocks = tuple(BlockId(number) for number in range(num_blocks))
        generations = (Generation(len(self.transport.pushes) + 1),) * num_blocks
        self.receiver.expect(blocks, generations)
        target = KvTarget(f"{task}@{PEER}", self.receiver.export(), blocks, generations)
        tokens = tuple(range(num_blocks * BLOCK_SIZE))
        prompt = SequenceSpec(tokens, (), SamplingParams(), StopParams(5))
        for command in (StartPrefill(task, prompt), PushTo(task, target)):
            self.perform(self.core.handle(CommandArrived(SessionId(1), command)))

    def run_pass(self) -> bool:
        self.now += 0.1
        actions, plan = self.core.plan(self.now)
        self.perform(actions)
        if plan is None:
            return False
        outputs = tuple(SampledOutput(c.slot, 7, "x") for c in plan.chunks if c.samples)
        self.perform(self.core.handle(StepFinished(outputs)))
        return True

    def finish(self) -> None:
        """All passes, and every push answered."""
        while self.run_pass():
            pass
        while self.core.num_tasks:
            self.perform(self.core.handle(self.inbox.get(timeout=PATIENCE_S)))


@pytest.mark.parametrize("overlap", list(KvOverlap))
def test_a_peer_that_dies_in_the_middle_of_a_push_fails_the_task_and_frees_all_blocks(
    overlap: KvOverlap,
) -> None:
    worker = Worker(overlap)
    try:
        worker.send(TaskId("before"), 8)
        worker.finish()
        assert isinstance(worker.reports[-2], KvPushed)
        worker.transport.hold(PEER)
        worker.send(TaskId("dying"), 8)
        while worker.run_pass():
            pass
        worker.transport.wait_until_held(PEER)
        worker.receiver.close()
        worker.transport.release()
        worker.finish()
    finally:
        worker.transport.release()
        assert worker.pusher.close(PATIENCE_S)
        worker.receiver.close()
    failures = [report for report in worker.reports if isinstance(report, TaskFailed)]
    assert [(report.task_id, report.code) for report in failures] == [
        (TaskId("dying"), "transfer_failed")
    ]
    assert worker.reports[-1] == TaskReleased(TaskId("dying"))
    assert worker.core.pool.num_free_blocks == NUM_BLOCKS
