"""Answers and prompts of a mixed worker take turns: who pauses, who moves, who comes back."""

from decode_worker.core import DecodeCore
from decode_worker.settings import DecodeSettings
from decode_worker.turn_taking import TurnTakingCore, new_core
from scheduling.batch_time_online import OnlineBatchTime
from scheduling.batch_time_recovery import Preemption
from scheduling.block_leases import LeaseKind, LentPlace
from scheduling.feedback_queues import FeedbackQueues
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import (
    AdmitPrompt,
    BlocksRefused,
    CancelTask,
    Command,
    GrantGrowth,
    GrowthNeeded,
    Preempted,
    Report,
    SequenceSpec,
    StartDecode,
    SwappedOut,
    TaskReleased,
)
from scheduling.mlfq import MlfqSettings
from scheduling.sampling import SamplingParams, StopParams
from scheduling.step import StepPlan
from scheduling.worker_events import (
    CommandArrived,
    DropSequence,
    LoadSequence,
    SampledOutput,
    SendReport,
    SessionId,
    StepFinished,
    SwapIn,
    SwapOut,
    WorkerAction,
)

SESSION = SessionId(1)
A, B, C = TaskId("a/0"), TaskId("b/0"), TaskId("c/0")
EXPORT = KvExport("loopback", "a", 8, 64, WorkerId("mixed-0"), Incarnation(1), "h")
STEP_S = 0.1


class Worker:
    """A core whose steps take a tenth of a second each."""

    def __init__(self, num_blocks: int = 40, num_host: int = 40, max_num_seqs: int = 1) -> None:
        rule = FeedbackQueues(OnlineBatchTime(), MlfqSettings(max_num_seqs, max_prompt_tokens=8))
        settings = DecodeSettings(
            num_blocks,
            4,
            max_num_seqs,
            growth_blocks=1,
            num_swap_blocks=num_host,
            is_mixed=True,
            batching=rule,
        )
        self.core = new_core(settings, EXPORT)
        self.now = 0.0

    def send(self, command: Command) -> list[WorkerAction]:
        actions = self.core.handle(CommandArrived(SESSION, command, self.now))
        self.core.check_invariants()
        return actions

    def admit(
        self,
        task_id: TaskId,
        num_prompt: int = 6,
        num_blocks: int = 2,
        like: TaskId | None = None,
        is_answer_held: bool = False,
    ) -> None:
        first = 1000 * sum((like or task_id).encode())
        prompt = tuple(range(first, first + num_prompt))
        spec = SequenceSpec(prompt, (), SamplingParams(), StopParams(60))
        command = AdmitPrompt(task_id, spec, num_blocks, is_answer_held=is_answer_held)
        assert self.send(command) == []

    def step(self) -> tuple[StepPlan, list[WorkerAction]]:
        actions, plan = self.core.plan(self.now)
        self.core.check_invariants()
        assert plan is not None
        return plan, actions + self.finish(plan)

    def finish(self, plan: StepPlan) -> list[WorkerAction]:
        self.now += STEP_S
        outputs = tuple(SampledOutput(c.slot, 8, "y") for c in plan.chunks if c.samples)
        actions = self.core.handle(StepFinished(outputs))
        self.core.check_invariants()
        return actions

    def run_dry(self) -> None:
        """Until nobody has room for its next token; what is asked for finds no answer."""
        while True:
            _, plan = self.core.plan(self.now)
            self.core.check_invariants()
            if plan is None:
                return
            self.finish(plan)

    def steps(self, num_steps: int) -> list[WorkerAction]:
        """Every growth that is asked for is granted."""
        actions: list[WorkerAction] = []
        for _ in range(num_steps):
            _, more = self.step()
            actions += more
            for report in reports(more):
                if isinstance(report, GrowthNeeded):
                    actions += self.send(GrantGrowth(report.task_id, report.num_blocks))
        return actions


def reports(actions: list[WorkerAction]) -> list[Report]:
    return [action.report for action in actions if isinstance(action, SendReport)]


def computed(plan: StepPlan) -> list[tuple[int, int]]:
    return [(chunk.start, chunk.num_tokens) for chunk in plan.chunks]


def test_a_new_prompt_goes_before_an_answer_that_has_had_its_quantum() -> None:
    worker = Worker(max_num_seqs=1)
    worker.admit(A)
    worker.step()
    worker.admit(B)
    plan, actions = worker.step()
    assert computed(plan) == [(0, 6)]
    assert any(isinstance(action, DropSequence) for action in actions)
    assert worker.core.pool.num_blocks_of(A) == 2, "it pauses with its KV on the device"
    assert not any(isinstance(action, SwapOut) for action in actions)


def test_who_paused_goes_on_where_it_was() -> None:
    worker = Worker(max_num_seqs=1)
    worker.admit(A)
    worker.step()
    worker.admit(B)
    worker.step()
    worker.send(CancelTask(B, "gone"))
    plan, actions = worker.step()
    (loaded,) = [action for action in actions if isinstance(action, LoadSequence)]
    assert len(loaded.start.token_ids) == 7
    assert loaded.start.block_table == worker.core.pool.blocks_of(A)
    assert computed(plan) == [(6, 1)]


def test_for_a_newcomer_the_lowest_answer_moves_to_host_memory_and_comes_back() -> None:
    worker = Worker(num_blocks=18, max_num_seqs=4)
    worker.admit(A, num_prompt=8, num_blocks=3)
    worker.steps(30)
    worker.admit(B, num_prompt=30, num_blocks=8)
    actions = worker.steps(1)
    assert SwappedOut(A, 10) in reports(actions)
    (swap_out,) = [action for action in actions if isinstance(action, SwapOut)]
    assert len(swap_out.block_ids) == 10
    assert worker.core.load.num_parked == 0, "that is nobody else's affair"
    assert worker.core.load.num_free_blocks == 18 - 8 + 40 - 10
    worker.send(CancelTask(B, "gone"))
    plan, actions = worker.step()
    assert any(isinstance(action, SwapIn) for action in actions)
    assert computed(plan) == [(37, 1)]


def test_blocks_that_are_granted_while_it_is_away_come_back_with_it() -> None:
    worker = Worker(num_blocks=18, max_num_seqs=4)
    worker.admit(A, num_prompt=8, num_blocks=3)
    worker.steps(30)
    while True:
        _, actions = worker.step()
        if any(isinstance(report, GrowthNeeded) for report in reports(actions)):
            break
    held = worker.core.pool.num_blocks_of(A)
    worker.admit(B, num_prompt=30, num_blocks=8)
    worker.step()
    assert worker.core.pool.num_blocks_of(A) == 0
    assert worker.send(GrantGrowth(A, 1)) == []
    worker.send(CancelTask(B, "gone"))
    worker.step()
    assert worker.core.pool.num_blocks_of(A) == held + 1


def away_without_room() -> Worker:
    """A has no room for its next token, has asked for it, and lies in host memory; B is gone."""
    worker = Worker(num_blocks=18, max_num_seqs=4)
    worker.admit(A, num_prompt=8, num_blocks=3)
    worker.steps(30)
    worker.run_dry()
    worker.admit(B, num_prompt=30, num_blocks=8)
    _, actions = worker.step()
    assert any(isinstance(report, SwappedOut) for report in reports(actions))
    worker.send(CancelTask(B, "gone"))
    return worker


def test_one_that_is_away_comes_back_when_it_has_room_for_its_next_token() -> None:
    worker = away_without_room()
    assert worker.core.plan(worker.now) == ([], None), "it could do nothing here"
    worker.core.check_invariants()
    worker.send(GrantGrowth(A, 1))
    _, actions = worker.step()
    assert any(isinstance(action, SwapIn) for action in actions)
    assert not any(isinstance(report, SwappedOut) for report in reports(actions))


def test_one_that_is_away_and_gets_no_room_is_given_up_when_nobody_else_could_end() -> None:
    worker = away_without_room()
    assert worker.send(GrantGrowth(A, 0)) == []
    actions, plan = worker.core.plan(worker.now)
    worker.core.check_invariants()
    assert (reports(actions), plan) == ([Preempted(A), TaskReleased(A)], None)
    assert worker.core.load.num_free_blocks == 18 + 40


def test_one_that_waits_for_the_router_is_not_what_others_without_room_wait_for() -> None:
    worker = Worker(num_blocks=6, num_host=0, max_num_seqs=2)
    worker.admit(A, num_prompt=8, num_blocks=3)
    worker.admit(B, num_prompt=8, num_blocks=3, is_answer_held=True)
    worker.run_dry()
    assert worker.send(GrantGrowth(A, 0)) == []
    actions, plan = worker.core.plan(worker.now)
    worker.core.check_invariants()
    assert (reports(actions), plan) == ([Preempted(A), TaskReleased(A)], None)
    assert worker.core.plan(worker.now) == ([], None), "what is held is nobody's to give up"


def test_nobody_begins_in_blocks_of_another_for_these_may_move() -> None:
    worker = Worker(max_num_seqs=4)
    worker.admit(A, num_blocks=8)
    worker.admit(B, is_answer_held=True)
    worker.steps(2)
    place = LentPlace(A, 6, 1, num_response_tokens=4, kind=LeaseKind.PIPELINE)
    refused = [BlocksRefused(B, worker.core.pool.num_free_blocks)]
    assert reports(worker.send(StartDecode(B, (8,), place))) == refused
    assert worker.core.pool.num_lent_blocks == 0
    assert len(worker.core.held) == 1, "it waits on"
    worker.send(StartDecode(B, (8,)))
    plan, _ = worker.step()
    assert len(plan.chunks) == 2


def test_who_was_refused_does_not_ask_again_because_others_move() -> None:
    worker = away_without_room()
    worker.admit(B, num_prompt=10, num_blocks=16)
    worker.step()
    assert worker.send(GrantGrowth(A, 0)) == []
    worker.admit(C, num_prompt=10, num_blocks=16)
    actions = [action for _ in range(8) for action in worker.step()[1]]
    assert any(isinstance(report, SwappedOut) for report in reports(actions))
    assert GrowthNeeded(A, 1) not in reports(actions)
    worker.send(CancelTask(C, "gone"))
    assert GrowthNeeded(A, 1) in reports(worker.step()[1]), "now the ledger has more room"


def test_who_was_refused_does_not_ask_again_because_it_moves() -> None:
    worker = Worker(num_blocks=18, max_num_seqs=4)
    worker.admit(A, num_prompt=8, num_blocks=3)
    worker.steps(30)
    worker.run_dry()
    worker.admit(B, num_prompt=8, num_blocks=6)
    worker.step()
    assert worker.send(GrantGrowth(A, 0)) == []
    worker.admit(C, num_prompt=8, num_blocks=8)
    told = [report for _ in range(3) for report in reports(worker.step()[1])]
    assert SwappedOut(A, 11) in told
    assert not any(isinstance(report, GrowthNeeded) for report in told)


def test_who_is_owed_blocks_goes_on_while_it_has_room() -> None:
    worker = Worker(num_blocks=6, num_host=0, max_num_seqs=2)
    for task_id in (A, B):
        worker.admit(task_id, num_prompt=8, num_blocks=3)
        worker.step()
    assert worker.send(GrantGrowth(A, 1)) == [], "there is none"
    for _ in range(2):
        plan, _ = worker.step()
        assert len(plan.chunks) == 2


def test_a_prompt_leaves_its_turn_to_the_one_whose_blocks_it_waits_to_share() -> None:
    worker = Worker(max_num_seqs=4)
    worker.admit(A, num_prompt=21, num_blocks=6)
    worker.step()
    worker.admit(B, num_prompt=21, num_blocks=6, like=A)
    # A has fallen into a lower queue than B; a prompt gets all the tokens of an iteration.
    assert [computed(worker.step()[0]) for _ in range(2)] == [[(8, 8)], [(16, 5)]]
    plan, _ = worker.step()
    assert sorted(computed(plan)) == [(20, 1), (21, 1)], "B shares five blocks"


def test_who_lost_its_turn_for_want_of_a_slot_is_not_charged_for_it() -> None:
    worker = Worker(max_num_seqs=1)
    worker.admit(A, num_prompt=21, num_blocks=6)
    worker.step()
    worker.admit(B, num_prompt=21, num_blocks=6)
    assert [computed(worker.step()[0]) for _ in range(3)] == [[(8, 8)], [(16, 5)], [(0, 8)]]


def test_one_that_is_away_can_be_cancelled() -> None:
    worker = Worker(num_blocks=18, max_num_seqs=4)
    worker.admit(A, num_prompt=8, num_blocks=3)
    worker.steps(30)
    worker.admit(B, num_prompt=30, num_blocks=8)
    worker.step()
    assert reports(worker.send(CancelTask(A, "gone"))) == [TaskReleased(A)]
    worker.send(CancelTask(B, "gone"))
    load = worker.core.load
    assert load.num_free_blocks == 18 + 40
    assert not worker.core.can_compute
    assert worker.core.plan(worker.now)[1] is None


def test_a_whole_batch_is_planned_anew_only_when_somebody_comes_or_goes() -> None:
    worker = Worker(max_num_seqs=4)
    for task_id in (A, B):
        worker.admit(task_id)
    worker.steps(3)
    actions = worker.steps(10)
    assert not any(isinstance(action, LoadSequence | DropSequence) for action in actions)
    worker.admit(C)
    plan, _ = worker.step()
    assert sorted(size for _, size in computed(plan)) == [1, 1, 6]


def test_only_a_mixed_worker_takes_turns_and_counts_host_memory_as_room() -> None:
    rule = FeedbackQueues(OnlineBatchTime(), MlfqSettings(4, 8))
    mixed = DecodeSettings(8, 4, 4, num_swap_blocks=5, is_mixed=True, batching=rule)
    assert mixed.num_host_blocks == 5
    assert isinstance(new_core(mixed, EXPORT), TurnTakingCore)
    plain = DecodeSettings(8, 4, 4, num_swap_blocks=5, batching=rule)
    assert plain.num_host_blocks is None
    assert type(new_core(plain, EXPORT)) is DecodeCore
    without = DecodeSettings(
        8,
        4,
        4,
        num_swap_blocks=5,
        preemption=Preemption.RECOMPUTE,
        is_mixed=True,
        batching=rule,
    )
    assert without.num_host_blocks == 0
