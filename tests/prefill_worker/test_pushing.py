"""When a prefill worker pushes what is computed, by each setting of kv_overlap."""

import math
import random

import pytest

from prefill_worker.core import PrefillCore, PrefillSettings
from scheduling.batch_time import BatchTime, shape_of
from scheduling.ids import BlockId, Generation, Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport, KvTarget
from scheduling.messages import CancelTask, Command, KvPushed, PushTo, SequenceSpec, StartPrefill
from scheduling.push_pacing import KvOverlap
from scheduling.sampling import SamplingParams, StopParams
from scheduling.worker_events import (
    CancelPush,
    CommandArrived,
    Push,
    PushFinished,
    SampledOutput,
    SendReport,
    SessionId,
    StepFinished,
    WorkerAction,
)

SESSION = SessionId(1)
BLOCK_SIZE, PER_PASS = 16, 256
MODEL = BatchTime(fixed_s=0.01, bends=((0, 1e-4),))
modes = pytest.mark.parametrize("overlap", list(KvOverlap))


class Worker:
    """A core, the time, and a path on which pushes are carried out one after the other."""

    def __init__(
        self,
        overlap: KvOverlap,
        *,
        fixed_s: float = 1e-4,
        per_block_s: float = 1e-5,
        per_pass: int = PER_PASS,
        are_cores_shared: bool = False,
        max_push_s: float = math.inf,
    ) -> None:
        settings = PrefillSettings(
            1024,
            BLOCK_SIZE,
            8,
            per_pass,
            prefix_caching=False,
            kv_overlap=overlap,
            are_cores_shared=are_cores_shared,
            max_push_s=max_push_s,
        )
        self.core = PrefillCore(settings)
        self.fixed_s, self.per_block_s = fixed_s, per_block_s
        self.now = self.free_at_s = 0.0
        self.under_way: list[tuple[float, PushFinished]] = []
        self.pushes: list[Push] = []
        self.pass_tokens: list[int] = []
        self.reports: list[object] = []

    def send(self, command: Command) -> None:
        self.perform(self.core.handle(CommandArrived(SESSION, command)))

    def perform(self, actions: list[WorkerAction]) -> None:
        for action in actions:
            if isinstance(action, Push):
                seconds = self.fixed_s + len(action.block_ids) * self.per_block_s
                self.free_at_s = max(self.now, self.free_at_s) + seconds
                num_blocks = len(action.block_ids)
                done = PushFinished(action.task_id, num_blocks, num_blocks, seconds)
                self.under_way.append((self.free_at_s, done))
                self.pushes.append(action)
            elif isinstance(action, SendReport):
                self.reports.append(action.report)

    def run_pass(self) -> bool:
        """One turn of the engine thread; False where nothing is to be computed."""
        for at_s, done in list(self.under_way):
            if at_s <= self.now:
                self.under_way.remove((at_s, done))
                self.perform(self.core.handle(done))
        actions, plan = self.core.plan(self.now)
        self.perform(actions)
        if plan is None:
            return False
        self.pass_tokens.append(sum(chunk.num_tokens for chunk in plan.chunks))
        self.now += MODEL.seconds(shape_of(plan.chunks))
        outputs = tuple(SampledOutput(c.slot, 7, "x") for c in plan.chunks if c.samples)
        self.perform(self.core.handle(StepFinished(outputs)))
        return True

    def finish(self) -> None:
        """Until nothing is under way any more."""
        while True:
            while self.run_pass():
                pass
            if not self.under_way:
                return
            self.now = max(self.now, self.under_way[0][0])

    def prompt(self, name: str, num_tokens: int) -> int:
        """From its arrival to its last block; by how many pushes."""
        before = len(self.pushes)
        task = TaskId(name)
        self.send(StartPrefill(task, prompt_of(num_tokens)))
        self.send(PushTo(task, target_of(name, -(-num_tokens // BLOCK_SIZE))))
        self.finish()
        assert isinstance(self.reports[-2], KvPushed)
        assert not self.core.num_tasks
        self.core.check_invariants()
        return len(self.pushes) - before


def prompt_of(num_tokens: int) -> SequenceSpec:
    return SequenceSpec(tuple(range(num_tokens)), (), SamplingParams(), StopParams(5))


def target_of(name: str, num_blocks: int) -> KvTarget:
    export = KvExport("loopback", "a", 4096, 64, WorkerId("decode-0"), Incarnation(1), "h")
    blocks = tuple(BlockId(i) for i in range(num_blocks))
    return KvTarget(f"{name}@decode-0", export, blocks, tuple(Generation(1) for _ in blocks))


def warmed(overlap: KvOverlap, **settings: float) -> Worker:
    """Passes and the path are known."""
    worker = Worker(overlap, **settings)  # type: ignore[arg-type]
    for number, num_tokens in enumerate((2000, 700, 1100, 2048, 900)):
        worker.prompt(f"warm/{number}", num_tokens)
    return worker


@modes
def test_every_block_is_pushed_once_and_in_order(overlap: KvOverlap) -> None:
    seed = 7
    rng = random.Random(seed)
    worker = Worker(overlap, per_block_s=1e-3)
    for number in range(12):
        num_tokens = rng.randint(1, 2000)
        before = len(worker.pushes)
        worker.prompt(f"r/{number}", num_tokens)
        mine = worker.pushes[before:]
        covered = [i for p in mine for i in range(p.first_index, p.first_index + len(p.block_ids))]
        assert covered == list(range(-(-num_tokens // BLOCK_SIZE)))
    assert worker.core.pool.num_free_blocks == 1024


def test_chunk_pushes_after_every_pass_and_whole_once() -> None:
    assert warmed(KvOverlap.CHUNK).prompt("r/0", 8 * PER_PASS) == 8
    assert warmed(KvOverlap.WHOLE).prompt("r/0", 8 * PER_PASS) == 1


def test_auto_pushes_what_travels_quickly_just_before_the_end() -> None:
    worker = warmed(KvOverlap.AUTO)
    assert worker.prompt("r/0", 8 * PER_PASS) == 2
    assert worker.pushes[-1].first_index == 7 * PER_PASS // BLOCK_SIZE


def test_auto_pushes_once_where_a_push_costs_more_than_the_prompt() -> None:
    worker = warmed(KvOverlap.AUTO, fixed_s=0.4)
    assert worker.prompt("r/0", 8 * PER_PASS) == 1


def test_auto_pushes_once_where_pushes_take_their_time_from_the_passes() -> None:
    worker = warmed(KvOverlap.AUTO, are_cores_shared=True)
    assert worker.prompt("r/0", 8 * PER_PASS) == 1


def test_auto_lets_no_push_become_so_long_that_it_would_time_out() -> None:
    """However little is gained: a push that times out costs the whole prompt, again and again."""
    per_block_s, max_push_s = 1e-3, 0.04
    worker = warmed(
        KvOverlap.AUTO, per_block_s=per_block_s, are_cores_shared=True, max_push_s=max_push_s
    )
    worker.pushes.clear()
    worker.prompt("r/0", 8 * PER_PASS)
    of_a_pass_s = PER_PASS // BLOCK_SIZE * per_block_s
    longest_s = max(len(push.block_ids) for push in worker.pushes) * per_block_s
    assert longest_s < max_push_s + of_a_pass_s
    assert len(worker.pushes) < 8


def test_a_path_that_is_taken_already_is_not_given_more_for_the_sake_of_short_pushes() -> None:
    """They would wait one behind the other, and time is up from when they were ordered."""
    worker = warmed(KvOverlap.AUTO, per_block_s=1e-2, max_push_s=0.04)
    assert worker.prompt("r/0", 8 * PER_PASS) < 8


@modes
def test_nothing_is_pushed_of_an_answer_that_ends_with_its_first_token(overlap: KvOverlap) -> None:
    worker = Worker(overlap)
    task = TaskId("r/0")
    worker.send(StartPrefill(task, prompt_of(PER_PASS)))
    worker.send(PushTo(task, target_of("r/0", PER_PASS // BLOCK_SIZE)))
    _, plan = worker.core.plan(0.0)
    assert plan is not None
    ended = SampledOutput(plan.chunks[0].slot, 7, "x", finish_reason="stop")
    worker.perform(worker.core.handle(StepFinished((ended,))))
    assert worker.pushes == []
    assert worker.core.num_tasks == 0


def test_auto_ends_no_later_than_either_fixed_way_on_slow_and_quick_paths() -> None:
    for fixed_s, per_block_s in ((1e-4, 1e-5), (1e-4, 1e-3), (1e-3, 5e-3), (0.1, 1e-5)):
        took_s = {}
        for overlap in KvOverlap:
            worker = warmed(overlap, fixed_s=fixed_s, per_block_s=per_block_s)
            began_at_s = worker.now
            worker.prompt("r/0", 8 * PER_PASS + 100)
            took_s[overlap] = worker.now - began_at_s
        least_s = min(took_s.values())
        assert took_s[KvOverlap.AUTO] <= least_s * 1.02, (fixed_s, per_block_s, took_s)


def test_an_unknown_path_is_pushed_to_after_every_pass() -> None:
    worker = Worker(KvOverlap.AUTO, fixed_s=10.0)
    assert worker.prompt("r/0", 4 * PER_PASS) == 4


def test_a_pass_is_cut_for_a_slow_path_but_not_while_others_wait() -> None:
    worker = warmed(KvOverlap.AUTO, per_block_s=2e-3, per_pass=4096)
    worker.pass_tokens.clear()
    worker.prompt("r/0", 4096)
    assert len(worker.pass_tokens) > 1
    assert sum(worker.pass_tokens) == 4096
    for name in ("s/0", "s/1"):
        worker.send(StartPrefill(TaskId(name), prompt_of(4096)))
        worker.send(PushTo(TaskId(name), target_of(name, 256)))
    worker.pass_tokens.clear()
    worker.run_pass()
    assert worker.pass_tokens == [4096]
    worker.finish()


@modes
def test_a_cancel_in_the_middle_of_a_push_leaves_nothing(overlap: KvOverlap) -> None:
    worker = Worker(overlap, per_block_s=1e-2)
    task = TaskId("r/0")
    worker.send(StartPrefill(task, prompt_of(3 * PER_PASS)))
    worker.send(PushTo(task, target_of("r/0", 3 * PER_PASS // BLOCK_SIZE)))
    while not worker.pushes:
        assert worker.run_pass()
    cancelled = worker.core.handle(CommandArrived(SESSION, CancelTask(task, "gone")))
    assert any(isinstance(action, CancelPush) for action in cancelled)
    failed = PushFinished(task, 0, 0, 0.0, "cancelled")
    worker.under_way = [(worker.now, failed) for _ in worker.under_way]
    worker.finish()
    assert worker.core.num_tasks == 0
    assert worker.core.pool.num_free_blocks == 1024
