"""The engine thread begins a pass while one runs; nothing computes any more when it has ended."""

import queue
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from decode_worker.planning_ahead import PlanningAheadCore
from decode_worker.settings import DecodeSettings
from engine.fake_runner import FakeRunner, fake_next_token
from engine.runner import RankLost
from engine.tokenizer import Tokenizer
from engine.tokenizer_testing import byte_level_backend, write_tokenizer
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    AdmitGeneration,
    Report,
    SequenceSpec,
    StartDecode,
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
    KvArrived,
    SendReport,
    SessionId,
    WorkerEvent,
)
from worker.engine_loop import EngineLoop
from worker.output_text import OutputText
from worker.passes_ahead import PassesAhead

PATIENCE_S = 20.0
SESSION = SessionId(1)
VOCAB_SIZE = 300
PROMPT = (5, 6, 7)
EXPORT = KvExport("loopback", "a", 8, 64, WorkerId("decode-0"), Incarnation(1), "h")


class NoKv:
    """No KV moves."""

    is_polling = False

    def perform(self, action: KvAction) -> None:
        pass  # blocks are expected and awaited; nobody looks at what is in them

    def poll(self) -> list[WorkerEvent]:
        return []


class Bench:
    """An engine loop over the decode core and the fake runner, whose passes take notes."""

    def __init__(
        self, tokenizer: Tokenizer, before_result: Callable[[StepPlan], None] | None = None
    ) -> None:
        self.notes: list[str] = []
        self.trouble = before_result
        self.frames: queue.SimpleQueue[list[SendReport]] = queue.SimpleQueue()
        self.core = PlanningAheadCore(DecodeSettings(16, 4, 4, plans_ahead=True), EXPORT)
        self.runner = FakeRunner(
            VOCAB_SIZE,
            4,
            4,
            before_step=lambda plan: self.notes.append("begun"),
            before_result=self._before_result,
        )
        self.loop = EngineLoop(
            self.core,
            self.runner,
            OutputText(tokenizer),
            NoKv(),
            queue.SimpleQueue(),
            self._sink,
            passes=partial(PassesAhead, self.core, self.runner),
        )

    def _before_result(self, plan: StepPlan) -> None:
        self.notes.append("taken")
        if self.trouble is not None:
            self.trouble(plan)

    def _sink(self, reports: list[SendReport], load: WorkerLoad) -> None:
        self.frames.put(reports)

    def answer(self, task_id: str, max_tokens: int) -> None:
        spec = SequenceSpec(PROMPT, (), SamplingParams(), StopParams(max_tokens))
        name = TaskId(task_id)
        self.loop.post(CommandArrived(SESSION, AdmitGeneration(name, spec, 4, 1, f"{name}@d")))
        first = fake_next_token(PROMPT, VOCAB_SIZE)
        self.loop.post(CommandArrived(SESSION, StartDecode(name, (first,))))
        self.loop.post(KvArrived(name))

    def until_released(self, task_id: str) -> list[Report]:
        reports: list[Report] = []
        while TaskReleased(TaskId(task_id)) not in reports:
            reports += [sent.report for sent in self.frames.get(timeout=PATIENCE_S)]
        return reports


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, byte_level_backend())
    return Tokenizer.from_folder(folder)


def expected(max_tokens: int) -> list[int]:
    tokens = list(PROMPT)
    for _ in range(max_tokens):
        tokens.append(fake_next_token(tokens, VOCAB_SIZE))
    return tokens[len(PROMPT) + 1 :]


def tokens_of(reports: list[Report]) -> list[int]:
    return [t for r in reports if isinstance(r, TokensEmitted) for t in r.token_ids]


def test_each_pass_is_begun_before_the_result_of_the_one_before_is_taken(
    tokenizer: Tokenizer,
) -> None:
    bench = Bench(tokenizer)
    bench.loop.start()
    bench.answer("a", 9)
    assert tokens_of(bench.until_released("a")) == expected(9)
    assert bench.notes == ["begun", *["begun", "taken"] * 7, "taken"]
    assert bench.loop.stop(PATIENCE_S)
    assert bench.runner.live_slots == ()


def test_a_failing_result_fails_its_tasks_and_the_thread_goes_on(tokenizer: Tokenizer) -> None:
    failures = iter([RuntimeError("out of memory")])

    def trouble(plan: StepPlan) -> None:
        for failure in failures:
            raise failure

    bench = Bench(tokenizer, trouble)
    bench.loop.start()
    bench.answer("a", 9)
    reports = bench.until_released("a")
    assert [type(r) for r in reports if isinstance(r, TaskFailed)] == [TaskFailed]
    bench.answer("b", 9)
    assert tokens_of(bench.until_released("b")) == expected(9)
    assert bench.loop.failure is None
    assert bench.loop.stop(PATIENCE_S)


def test_a_pass_that_runs_when_the_engine_stops_is_waited_for(tokenizer: Tokenizer) -> None:
    gate, is_waiting = threading.Event(), threading.Event()

    def trouble(plan: StepPlan) -> None:
        is_waiting.set()
        assert gate.wait(PATIENCE_S)

    bench = Bench(tokenizer, trouble)
    bench.loop.start()
    bench.answer("a", 9)
    assert is_waiting.wait(PATIENCE_S)
    assert not bench.loop.stop(0.0)
    gate.set()
    assert bench.loop.stop(PATIENCE_S)
    bench.runner.remove(0)  # no pass has it any more


def test_a_lost_rank_ends_the_thread(tokenizer: Tokenizer) -> None:
    def trouble(plan: StepPlan) -> None:
        raise RankLost("rank 1 is gone")

    bench = Bench(tokenizer, trouble)
    told = threading.Event()
    bench.loop.on_failure = told.set
    bench.loop.start()
    bench.answer("a", 9)
    assert told.wait(PATIENCE_S)
    assert isinstance(bench.loop.failure, RankLost)
