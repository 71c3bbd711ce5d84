"""A decode or mixed worker without a process: its core, its passes, and an engine that is late.

Around them a router, senders and host memory that do as they are told, one thing at a time and in
any order. Tokens are a function of the history, and so is the KV of every token: what is written
into another's block, or read too early, shows as an engine that failed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from decode_worker.planning_ahead import PlanningAheadCore
from decode_worker.settings import DecodeSettings
from decode_worker.turn_taking import new_core
from decode_worker.wanted_testing import BLOCK_SIZE, STOPS, VOCAB_SIZE, Try, Wanted
from engine.fake_runner import FakeRunner, fake_next_token, history_hashes
from engine.runner import InvalidSequence
from engine.tokenizer import Tokenizer
from runtime.clock import ManualClock
from scheduling.block_pool import num_blocks_for
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    AdmitGeneration,
    AdmitPrompt,
    BlocksGranted,
    BlocksRefused,
    CancelTask,
    Command,
    DecodeStarted,
    GrantGrowth,
    GrowthNeeded,
    Preempted,
    Report,
    ResumeGeneration,
    RoomMade,
    SequenceSpec,
    StartDecode,
    SwappedOut,
    TaskFailed,
    TaskReleased,
    TokensEmitted,
)
from scheduling.sampling import SamplingParams, StopParams
from scheduling.step import StepPlan
from scheduling.worker_events import (
    CommandArrived,
    DropSequence,
    ExpectKv,
    ExtendSequence,
    KvArrived,
    LoadSequence,
    QuarantineCleared,
    ReplaceBlocks,
    RevokeKv,
    SendReport,
    SessionId,
    SessionLost,
    StepFinished,
    SwapIn,
    SwapOut,
    WorkerAction,
    WorkerEvent,
)
from worker.engine_pulse import EnginePulse
from worker.output_text import OutputText
from worker.passes_ahead import PassesAhead, failure, refusal

BLOCK_BYTES = 32
_SESSION = SessionId(1)
_EXPORT = KvExport("fake", "a", 8, BLOCK_BYTES, WorkerId("decode-0"), Incarnation(1), "h")


@dataclass
class Scene:
    """The worker, and what is on its way to it."""

    tokenizer: Tokenizer
    settings: DecodeSettings
    # Runs before a pass is ordered, and before a result is told: it may raise.
    before_step: Callable[[StepPlan], None] | None = None
    before_result: Callable[[StepPlan], None] | None = None
    try_by_id: dict[TaskId, Try] = field(default_factory=dict)
    # Answers by their sequences: whole, or as far as somebody wanted them.
    whole: dict[Wanted, tuple[int, ...]] = field(default_factory=dict)
    cut: dict[Wanted, tuple[int, ...]] = field(default_factory=dict)
    # What is to be sent again.
    waiting: list[tuple[Wanted, list[int]]] = field(default_factory=list)
    arrivals: list[TaskId] = field(default_factory=list)
    questions: list[GrowthNeeded] = field(default_factory=list)
    parked: list[TaskId] = field(default_factory=list)
    # Beside their KV, without a slot.
    in_line: list[TaskId] = field(default_factory=list)
    quarantined: list[TaskId] = field(default_factory=list)
    failures: list[TaskFailed] = field(default_factory=list)
    num_room_made: int = 0

    def __post_init__(self) -> None:
        self.core = new_core(self.settings, _EXPORT)
        self._kv = memoryview(bytearray(self.settings.num_blocks * BLOCK_BYTES))
        self._host = bytearray(max(1, self.settings.num_swap_blocks) * BLOCK_BYTES)
        self.runner = FakeRunner(
            VOCAB_SIZE,
            BLOCK_SIZE,
            self.settings.max_num_seqs,
            kv_bytes=self._kv,
            block_bytes=BLOCK_BYTES,
            before_step=self.before_step,
            before_result=self.before_result,
        )
        self.text = OutputText(self.tokenizer)
        self.pulse, self.clock = EnginePulse(ManualClock()), ManualClock()
        self._refused: list[int] = []
        self._resuming: set[TaskId] = set()
        self._targets: dict[TaskId, BlocksGranted] = {}
        self.passes: PassesAhead | None = None
        if self.settings.plans_ahead:
            assert isinstance(self.core, PlanningAheadCore)
            self.passes = PassesAhead(self.core, self.runner, self, self.text, self.clock)

    # --- what may happen --------------------------------------------------------------------------

    def turn(self) -> bool:
        """One turn of the engine; False where nothing is to be computed."""
        self.clock.advance(0.01)
        has_work = self._one_after_the_other() if self.passes is None else self.passes.turn()
        self.core.check_invariants()
        return has_work

    def tell(self, event: WorkerEvent) -> None:
        """Something arrives at the worker."""
        self.perform(self.core.handle(event))
        self.core.check_invariants()

    def send(self, command: Command) -> None:
        """The router says something."""
        self.tell(CommandArrived(_SESSION, command, self.clock.now()))

    def admit(self, wanted: Wanted, output: list[int] | None = None) -> TaskId:
        """Another try, from the output on that exists; its KV comes with `arrive`."""
        task_id = TaskId(f"{len(self.try_by_id)}/0")
        prompt = wanted.prompt
        known = list(output or ())
        if not known and not self.settings.is_mixed:
            known = [fake_next_token(prompt, VOCAB_SIZE)]
        self.try_by_id[task_id] = Try(wanted, known)
        stop = StopParams(wanted.max_tokens, stop_token_ids=STOPS)
        spec = SequenceSpec(prompt, tuple(known), SamplingParams(), stop)
        num_blocks = num_blocks_for(len(prompt) + len(known) + 1, BLOCK_SIZE)
        if self.settings.is_mixed:
            self.send(AdmitPrompt(task_id, spec, num_blocks))
            return task_id
        if len(known) >= wanted.max_tokens or known[-1] in STOPS:
            self._over(task_id, tuple(known))  # its first token was its last
            self.try_by_id[task_id].is_over = True
            return task_id
        num_kv_blocks = num_blocks_for(len(prompt) + len(known) - 1, BLOCK_SIZE)
        self.send(AdmitGeneration(task_id, spec, num_blocks, num_kv_blocks, f"{task_id}@d"))
        return task_id

    def arrive(self, index: int = 0) -> None:
        """The KV of one that was granted blocks comes in, and it may begin."""
        task_id = self.arrivals.pop(index % len(self.arrivals))
        one, target = self.try_by_id[task_id], self._targets.pop(task_id).target
        history = (*one.wanted.prompt, *one.output)
        hashes = history_hashes(history)
        for position in range(len(history) - 1):
            block, within = divmod(position, BLOCK_SIZE)
            if block >= target.first_block_index:
                at = target.block_ids[block - target.first_block_index] * BLOCK_BYTES
                at += within * BLOCK_BYTES // BLOCK_SIZE
                self._kv[at : at + 8] = hashes[position].to_bytes(8, "little")
        self.send(StartDecode(task_id, tuple(one.output)))
        self.tell(KvArrived(task_id))

    def answer_growth(self, index: int = 0, *, is_refused: bool = False) -> None:
        """The ledger's word on one question."""
        asked = self.questions.pop(index % len(self.questions))
        num_blocks = min(asked.num_blocks, self.core.pool.num_free_blocks)
        self.send(GrantGrowth(asked.task_id, 0 if is_refused else num_blocks))

    def resume(self, index: int = 0) -> None:
        """One that lies in host memory may come back."""
        task_id = self.parked.pop(index % len(self.parked))
        one = self.try_by_id[task_id]
        self._resuming.add(task_id)
        num_tokens = one.wanted.num_prompt + len(one.output) + 1
        self.send(ResumeGeneration(task_id, num_blocks_for(num_tokens, BLOCK_SIZE)))

    def start_in_line(self, index: int = 0) -> None:
        """One that waits beside its KV gets more room, or has to begin again."""
        task_id = self.in_line.pop(index % len(self.in_line))
        one, num_blocks = self.try_by_id[task_id], min(2, self.core.pool.num_free_blocks)
        if num_blocks:
            self.send(GrantGrowth(task_id, num_blocks))
            self.send(StartDecode(task_id, tuple(one.output)))
        else:
            self._again(task_id)
            self.send(CancelTask(task_id, "test"))

    def cancel(self, index: int) -> None:
        """Nobody wants one of the answers any more."""
        living = [task_id for task_id, one in self.try_by_id.items() if not one.is_over]
        if living:
            task_id = living[index % len(living)]
            self._give_up(task_id)
            self.send(CancelTask(task_id, "test"))

    def lose_session(self) -> None:
        """The router is gone, and nobody wants its answers."""
        for task_id, one in self.try_by_id.items():
            if not one.is_over:
                self._give_up(task_id)
        self.tell(SessionLost(_SESSION))

    def clear_quarantine(self) -> None:
        """No sender writes any more."""
        self.tell(QuarantineCleared(self.quarantined.pop(0)))

    def settle(self, max_turns: int = 3000) -> None:
        """Everything that can happen does, until every answer is there and nothing is left."""
        for _ in range(max_turns):
            while self.arrivals:
                self.arrive()
            while self.quarantined:
                self.clear_quarantine()
            while self.questions:
                self.answer_growth()
            if self.parked:
                self.resume()
            if self.in_line:
                self.start_in_line()
            if self.waiting and not self.core.num_tasks:
                self.admit(*self.waiting.pop(0))
            if not self.turn() and not self.core.num_tasks and not self.waiting:
                return
        raise AssertionError(f"still busy: {self.core.load}")

    def check_nothing_left(self) -> None:
        """Raise AssertionError unless all blocks and slots are free."""
        self.core.check_invariants()
        assert not self.core.num_tasks
        assert self.core.pool.num_free_blocks == self.core.pool.num_blocks
        assert self.runner.live_slots == ()
        assert self.passes is None or not self.passes.is_running

    # --- the engine loop --------------------------------------------------------------------------

    @property
    def refused(self) -> tuple[int, ...]:
        return tuple(self._refused)

    def flush(self) -> None:
        """Reports are heard at once."""

    def computed(self, began_at_s: float, plan: StepPlan) -> None:
        """Nobody wants to know."""

    def perform(self, actions: list[WorkerAction]) -> None:
        """As the engine loop and the KV side do it."""
        for action in actions:
            self._check_untouched(action)
            match action:
                case SendReport(_, report):
                    self._heard(report)
                case LoadSequence(start, stop):
                    try:
                        self.runner.add(start)
                        self.text.load(start, stop)
                    except InvalidSequence:
                        self._refused.append(start.slot)
                case ExtendSequence(slot, block_ids):
                    self.runner.extend_blocks(slot, block_ids)
                case ReplaceBlocks(slot, first_index, block_ids):
                    self.runner.replace_blocks(slot, first_index, block_ids)
                case DropSequence(slot) if slot in self._refused:
                    self._refused.remove(slot)
                case DropSequence(slot):
                    self.runner.remove(slot)
                    self.text.drop(slot)
                case SwapOut(block_ids, swap_block_ids):
                    for block, there in zip(block_ids, swap_block_ids, strict=True):
                        self._host[_bytes_of(there)] = self._kv[_bytes_of(block)]
                case SwapIn(swap_block_ids, block_ids):
                    for there, block in zip(swap_block_ids, block_ids, strict=True):
                        self._kv[_bytes_of(block)] = self._host[_bytes_of(there)]
                case RevokeKv(task_id, _):
                    self.quarantined.append(task_id)
                case _:
                    pass  # what only a transfer needs to know

    def _one_after_the_other(self) -> bool:
        actions, plan = self.core.plan(self.clock.now())
        self.perform(actions)
        if self._refused:
            self.tell(refusal(self.refused))
            return True
        if plan is None:
            return False
        try:
            result = self.runner.step(plan)
        except Exception as error:
            self.tell(failure(error, plan))
            return True
        self.tell(StepFinished(self.text.process(result), result.prompt_logprobs))
        return True

    def _check_untouched(self, action: WorkerAction) -> None:
        """Nothing that a pass under way writes to may be given out, moved or taken away."""
        given: tuple[int, ...]
        match action:
            case (
                ExpectKv(block_ids, _)
                | ExtendSequence(_, block_ids)
                | ReplaceBlocks(_, _, block_ids)
                | SwapOut(block_ids, _)
                | SwapIn(_, block_ids)
            ):
                given = block_ids
            case LoadSequence(start, _):
                given = start.block_table
            case _:
                return
        assert not self.runner.blocks_under_way.intersection(given), action

    def _heard(self, report: Report) -> None:
        match report:
            case BlocksGranted(task_id, _):
                self._targets[task_id] = report
                self.arrivals.append(task_id)
            case TokensEmitted(task_id):
                one = self.try_by_id[task_id]
                assert not one.is_over
                assert report.first_token_index == len(one.output), "a token is missing or twice"
                one.output += report.token_ids
                if report.finish_reason is not None and not one.is_given_up:
                    self._over(task_id, tuple(one.output))
            case GrowthNeeded():
                self.questions.append(report)
            case SwappedOut(task_id):
                self.parked.append(task_id)
            case BlocksRefused(task_id) if task_id in self._resuming:
                self._resuming.discard(task_id)
                self.parked.append(task_id)
            case DecodeStarted(task_id):
                self._resuming.discard(task_id)
            case Preempted(task_id, keeps_kv) if keeps_kv:
                self.in_line.append(task_id)
            case BlocksRefused(task_id) | Preempted(task_id):
                self._again(task_id)
            case TaskFailed(task_id):
                self.failures.append(report)
                self._give_up(task_id)
            case RoomMade():
                self.num_room_made += 1
            case TaskReleased(task_id):
                self.try_by_id[task_id].is_over = True
                self._forget(task_id)
            case _:
                pass

    def _again(self, task_id: TaskId) -> None:
        one = self.try_by_id[task_id]
        self._forget(task_id)
        one.is_over = True
        if not one.is_given_up:
            self.waiting.append((one.wanted, one.output))

    def _give_up(self, task_id: TaskId) -> None:
        one = self.try_by_id[task_id]
        one.is_given_up = True
        if one.wanted not in self.whole:
            self.cut[one.wanted] = tuple(one.output)
        self._forget(task_id)

    def _over(self, task_id: TaskId, output: tuple[int, ...]) -> None:
        self.whole[self.try_by_id[task_id].wanted] = output
        self._forget(task_id)

    def _forget(self, task_id: TaskId) -> None:
        for ids in (self.arrivals, self.parked, self.in_line):
            if task_id in ids:
                ids.remove(task_id)
        self.questions = [asked for asked in self.questions if asked.task_id != task_id]


def _bytes_of(block: int) -> slice:
    return slice(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES)
