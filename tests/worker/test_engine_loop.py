"""The engine thread: iterations, failing steps, defects and the end."""

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from engine.fake_runner import FakeRunner
from engine.runner import RankLost
from engine.tokenizer import Tokenizer
from engine.tokenizer_testing import byte_level_backend, write_tokenizer
from prefill_worker.core import PrefillCore, PrefillSettings
from scheduling.errors import TandemError
from scheduling.ids import TaskId
from scheduling.messages import (
    CancelTask,
    PrefillStarted,
    Report,
    SequenceSpec,
    StartPrefill,
    TaskFailed,
    TaskReleased,
    TokensEmitted,
    WorkerLoad,
)
from scheduling.sampling import SamplingParams, StopParams
from scheduling.step import StepPlan
from scheduling.worker_events import (
    CommandArrived,
    KvAction,
    SendReport,
    SessionId,
    SessionLost,
    WorkerEvent,
)
from worker.core_sharing import Cores
from worker.engine_loop import EngineLoop
from worker.output_text import OutputText

PATIENCE_S = 20.0
SESSION = SessionId(1)
VOCAB_SIZE = 300


class QuietKv:
    """No KV moves; events may be put in for the next look."""

    def __init__(self) -> None:
        self.is_polling = False
        self.num_looks = 0
        self.looked_often = threading.Event()

    def perform(self, action: KvAction) -> None:
        raise AssertionError(f"nothing is to be moved: {action}")

    def poll(self) -> list[WorkerEvent]:
        self.num_looks += 1
        if self.num_looks > 20:
            self.looked_often.set()
        return []


@dataclass
class GatedCores:
    """Others have the cores until the gate opens."""

    gate: threading.Event = field(default_factory=threading.Event)
    was_asked: threading.Event = field(default_factory=threading.Event)
    num_begun: int = 0
    num_ended: int = 0

    def begin(self) -> bool:
        self.was_asked.set()
        self.num_begun += self.gate.is_set()
        return self.gate.is_set()

    def end(self, *, has_computed: bool) -> None:
        self.num_ended += 1


class BrokenCore(PrefillCore):
    """Its bookkeeping fails with the first cancel."""

    def handle(self, event: WorkerEvent) -> list:  # type: ignore[type-arg]
        if isinstance(event, CommandArrived) and isinstance(event.command, CancelTask):
            raise KeyError("a defect")
        return super().handle(event)


@dataclass
class Bench:
    """An engine loop over the prefill core and the fake runner."""

    tokenizer: Tokenizer
    core: PrefillCore = field(
        default_factory=lambda: PrefillCore(PrefillSettings(8, 4, 4, max_num_batched_tokens=8))
    )
    before_step: Callable[[StepPlan], None] | None = None
    kv: QuietKv = field(default_factory=QuietKv)
    cores: Cores | None = None
    frames: queue.SimpleQueue[tuple[list[SendReport], WorkerLoad]] = field(
        default_factory=queue.SimpleQueue
    )

    def __post_init__(self) -> None:
        self.runner = FakeRunner(VOCAB_SIZE, 4, 4, before_step=self.before_step)
        self.loop = EngineLoop(
            self.core,
            self.runner,
            OutputText(self.tokenizer),
            self.kv,
            queue.SimpleQueue(),
            lambda reports, load: self.frames.put((reports, load)),
            cores=self.cores,
        )

    def prompt(self, task_id: str, num_tokens: int = 6, max_tokens: int = 1) -> None:
        stop = StopParams(max_tokens)
        spec = SequenceSpec(tuple(range(num_tokens)), (), SamplingParams(), stop)
        self.loop.post(CommandArrived(SESSION, StartPrefill(TaskId(task_id), spec)))

    def next_reports(self) -> list[Report]:
        reports, _ = self.frames.get(timeout=PATIENCE_S)
        return [sent.report for sent in reports]

    def until_released(self, task_id: str) -> list[Report]:
        """All reports up to the last word on the task."""
        reports: list[Report] = []
        while TaskReleased(TaskId(task_id)) not in reports:
            reports += self.next_reports()
        return reports


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, byte_level_backend())
    return Tokenizer.from_folder(folder)


@pytest.fixture
def bench(tokenizer: Tokenizer) -> Iterator[Bench]:
    place = Bench(tokenizer)
    place.loop.start()
    yield place
    assert place.loop.stop(PATIENCE_S)


def test_a_task_runs_from_command_to_release(bench: Bench) -> None:
    bench.prompt("a")
    reports = bench.until_released("a")
    assert [type(report) for report in reports] == [PrefillStarted, TokensEmitted, TaskReleased]
    assert bench.runner.live_slots == ()
    assert bench.loop.num_tasks == 0


def test_what_is_known_before_a_step_is_told_before_it(tokenizer: Tokenizer) -> None:
    gate = threading.Event()
    place = Bench(tokenizer, before_step=lambda plan: _wait_for(gate))
    place.loop.start()
    place.prompt("a")
    assert place.next_reports() == [PrefillStarted(TaskId("a"))]
    gate.set()
    place.until_released("a")
    assert place.loop.stop(PATIENCE_S)


def _wait_for(gate: threading.Event) -> None:
    assert gate.wait(PATIENCE_S)


def test_commands_that_come_during_a_step_count_after_it(tokenizer: Tokenizer) -> None:
    gate, is_stepping = threading.Event(), threading.Event()

    def before_step(plan: StepPlan) -> None:
        is_stepping.set()
        _wait_for(gate)

    place = Bench(tokenizer, before_step=before_step)
    place.loop.start()
    place.prompt("a", num_tokens=20)
    assert is_stepping.wait(PATIENCE_S)
    place.loop.post(CommandArrived(SESSION, CancelTask(TaskId("a"), "test")))
    gate.set()
    reports = place.until_released("a")
    assert not any(isinstance(report, TokensEmitted) for report in reports)
    assert len(place.runner.steps) == 1
    assert place.loop.stop(PATIENCE_S)


def test_a_plan_holds_what_came_while_other_engines_had_the_cores(tokenizer: Tokenizer) -> None:
    cores = GatedCores()
    place = Bench(tokenizer, cores=cores)
    place.loop.start()
    place.prompt("a", num_tokens=3)
    assert cores.was_asked.wait(PATIENCE_S)
    assert place.runner.steps == []
    place.prompt("b", num_tokens=3)
    for _ in range(2):  # the second question comes after a look into the inbox
        cores.was_asked.clear()
        assert cores.was_asked.wait(PATIENCE_S)
    cores.gate.set()
    place.until_released("b")
    assert [len(step.chunks) for step in place.runner.steps] == [2]
    assert place.loop.stop(PATIENCE_S)
    assert cores.num_begun == cores.num_ended


def test_an_engine_with_nothing_to_compute_takes_nobodys_turn(tokenizer: Tokenizer) -> None:
    cores = GatedCores()
    cores.gate.set()
    place = Bench(tokenizer, cores=cores)
    place.loop.start()
    # It stays until its KV is pushed, which nobody asks for.
    place.prompt("a", max_tokens=2)
    while not any(isinstance(report, TokensEmitted) for report in place.next_reports()):
        pass
    num_begun = cores.num_begun
    for name in ("b", "c"):  # the answer to the second follows all that the first led to
        place.loop.post(CommandArrived(SESSION, CancelTask(TaskId(name), "")))
        place.until_released(name)
    assert place.loop.num_tasks == 1
    assert cores.num_begun == num_begun
    assert place.loop.stop(PATIENCE_S)


def test_cores_that_never_become_free_do_not_keep_an_engine_from_stopping(
    tokenizer: Tokenizer,
) -> None:
    cores = GatedCores()
    place = Bench(tokenizer, cores=cores)
    place.loop.start()
    place.prompt("a")
    assert cores.was_asked.wait(PATIENCE_S)
    assert place.loop.stop(PATIENCE_S)
    assert cores.num_begun == 0


def test_a_failing_step_fails_its_tasks_and_the_thread_goes_on(tokenizer: Tokenizer) -> None:
    failures = iter([RuntimeError("out of memory")])

    def before_step(plan: StepPlan) -> None:
        for failure in failures:
            raise failure

    place = Bench(tokenizer, before_step=before_step)
    place.loop.start()
    place.prompt("a")
    reports = place.until_released("a")
    (failed,) = [report for report in reports if isinstance(report, TaskFailed)]
    assert failed.code == TandemError.code
    assert "RuntimeError" in failed.message
    assert "out of memory" not in failed.message, "what went wrong inside is for the log"
    assert place.runner.live_slots == ()
    place.prompt("b")
    assert any(isinstance(report, TokensEmitted) for report in place.until_released("b"))
    assert place.loop.failure is None
    assert place.loop.stop(PATIENCE_S)


def test_a_lost_rank_ends_the_thread_and_no_task_is_told_that_it_failed(
    tokenizer: Tokenizer,
) -> None:
    def before_step(plan: StepPlan) -> None:
        raise RankLost("rank 1 is gone")

    place = Bench(tokenizer, before_step=before_step)
    told = threading.Event()
    place.loop.on_failure = told.set
    place.loop.start()
    place.prompt("a")
    assert told.wait(PATIENCE_S)
    assert isinstance(place.loop.failure, RankLost)
    # Routers give the task to another worker: it is the end of the session that they hear.
    while not place.frames.empty():
        assert not any(isinstance(report, TaskFailed) for report in place.next_reports())
    assert place.loop.stop(PATIENCE_S)


def test_a_sequence_that_no_model_can_compute_fails_alone(bench: Bench) -> None:
    bad = SequenceSpec((1, VOCAB_SIZE + 7), (), SamplingParams(), StopParams(1))
    bench.prompt("before/0")
    bench.loop.post(CommandArrived(SESSION, StartPrefill(TaskId("bad/0"), bad)))
    bench.prompt("after/0", num_tokens=3)
    reports = bench.until_released("after/0")
    assert TaskReleased(TaskId("before/0")) in reports
    assert TaskReleased(TaskId("bad/0")) in reports
    failed = [report for report in reports if isinstance(report, TaskFailed)]
    assert [report.task_id for report in failed] == ["bad/0"]
    assert bench.core.pool.num_free_blocks == bench.core.pool.num_blocks


def test_a_defect_of_the_core_ends_the_thread_and_is_told_once(tokenizer: Tokenizer) -> None:
    place = Bench(tokenizer, core=BrokenCore(PrefillSettings(8, 4, 4, 8)))
    told = threading.Event()
    place.loop.on_failure = told.set
    place.loop.start()
    place.loop.post(CommandArrived(SESSION, CancelTask(TaskId("a"), "test")))
    assert told.wait(PATIENCE_S)
    assert isinstance(place.loop.failure, KeyError)
    assert place.loop.stop(PATIENCE_S)


def test_a_lost_session_ends_its_tasks(bench: Bench) -> None:
    bench.prompt("a")
    bench.until_released("a")
    bench.loop.post(SessionLost(SESSION))
    bench.prompt("b")
    bench.until_released("b")
    assert bench.loop.num_tasks == 0


def test_awaited_kv_is_looked_at_while_there_is_nothing_else_to_do(tokenizer: Tokenizer) -> None:
    place = Bench(tokenizer)
    place.kv.is_polling = True
    place.loop.start()
    assert place.kv.looked_often.wait(PATIENCE_S)
    assert place.loop.stop(PATIENCE_S)


def test_a_loop_that_never_started_can_be_stopped(tokenizer: Tokenizer) -> None:
    assert Bench(tokenizer).loop.stop(PATIENCE_S)
