"""Blocks that are here need not travel, and those on their way travel once."""

from decode_worker.core import DecodeCore
from decode_worker.settings import DecodeSettings
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport, KvTarget
from scheduling.messages import (
    PREFIX_LOST,
    AdmitGeneration,
    BlocksGranted,
    CancelTask,
    DecodeStarted,
    Report,
    SequenceSpec,
    StartDecode,
    TaskFailed,
    TaskReleased,
)
from scheduling.sampling import SamplingParams, StopParams
from scheduling.worker_events import (
    AwaitKv,
    CommandArrived,
    KvArrived,
    KvRefused,
    QuarantineCleared,
    RevokeKv,
    SampledOutput,
    SendReport,
    SessionId,
    SessionLost,
    StepFailed,
    StepFinished,
    WorkerAction,
)

A, B, C = TaskId("a/0"), TaskId("b/0"), TaskId("c/0")
EXPORT = KvExport("loopback", "a", 32, 64, WorkerId("decode-0"), Incarnation(1), "h")
PROMPT = tuple(range(14))


class Bench:
    """A core of blocks of four tokens, and what it said."""

    def __init__(self, num_blocks: int = 32) -> None:
        self.core = DecodeCore(DecodeSettings(num_blocks, 4, 4), EXPORT)

    def admit(
        self,
        task_id: TaskId,
        prompt: tuple[int, ...] = PROMPT,
        output: tuple[int, ...] = (),
        source: str = "prefill-0",
        session: int = 1,
        salt: str = "",
    ) -> KvTarget:
        """Room for the prompt and one block; returns where its KV is to go."""
        spec = SequenceSpec(prompt, output, SamplingParams(), StopParams(20), cache_salt=salt)
        # Of output that exists already the newest token has no KV.
        num_kv = -(-(len(prompt) + max(0, len(output) - 1)) // 4)
        command = AdmitGeneration(task_id, spec, num_kv + 1, num_kv, f"{task_id}@d", source)
        (granted,) = self.reports(CommandArrived(SessionId(session), command))
        assert isinstance(granted, BlocksGranted)
        return granted.target

    def begin(self, task_id: TaskId, *output: int) -> AwaitKv:
        """The prompt is computed; returns what is awaited."""
        (awaited,) = self.handle(CommandArrived(SessionId(1), StartDecode(task_id, output or (7,))))
        assert isinstance(awaited, AwaitKv)
        return awaited

    def handle(self, event: object) -> list[WorkerAction]:
        actions = self.core.handle(event)  # type: ignore[arg-type]
        self.core.check_invariants()
        return actions

    def reports(self, event: object) -> list[Report]:
        return [a.report for a in self.handle(event) if isinstance(a, SendReport)]

    def decode(self, num_tokens: int) -> None:
        for number in range(num_tokens):
            _, plan = self.core.plan(0.0)
            assert plan is not None
            outputs = tuple(SampledOutput(chunk.slot, 50 + number, "") for chunk in plan.chunks)
            self.handle(StepFinished(outputs))

    def cancel(self, task_id: TaskId) -> list[WorkerAction]:
        return self.handle(CommandArrived(SessionId(1), CancelTask(task_id, "left")))


def decoded(bench: Bench, num_tokens: int) -> None:
    """A's prompt arrived, and some tokens followed; everything is cached then."""
    bench.admit(A)
    bench.begin(A)
    bench.handle(KvArrived(A))
    bench.decode(num_tokens)
    bench.cancel(A)
    assert bench.core.pool.num_free_blocks == 32


def test_only_missing_blocks_are_granted_and_awaited() -> None:
    bench = Bench()
    assert len(bench.admit(A).block_ids) == 4
    bench.begin(A)
    bench.handle(KvArrived(A))
    target = bench.admit(B)
    assert (target.first_block_index, len(target.block_ids)) == (3, 1)
    assert bench.begin(B).block_ids == target.block_ids
    assert bench.reports(KvArrived(B)) == [DecodeStarted(B)]
    assert bench.core.pool.blocks_of(B)[:3] == bench.core.pool.blocks_of(A)[:3]


def test_requests_of_different_salts_share_nothing_on_the_worker() -> None:
    bench = Bench()
    bench.admit(A, salt="one")
    # Neither what is on its way for another salt, nor what arrived, nor what decoding filled.
    assert bench.admit(B, salt="two").first_block_index == 0
    assert bench.admit(C).first_block_index == 0
    bench.begin(A)
    bench.handle(KvArrived(A))
    bench.decode(4)
    answered = (*PROMPT, 7, 50, 51, 52, 53, 1)
    others = [("d/0", "two", 0), ("e/0", "", 0), ("f/0", "one", 4)]
    for name, salt, num_shared in others:
        target = bench.admit(TaskId(name), answered, salt=salt, source="prefill-1")
        assert target.first_block_index == num_shared
    assert not set(bench.core.pool.blocks_of(A)) & set(bench.core.pool.blocks_of(B))


def test_an_answer_that_fills_the_first_block_keeps_it_to_its_salt() -> None:
    bench = Bench()
    bench.admit(A, PROMPT[:2], salt="one")
    bench.begin(A)
    bench.handle(KvArrived(A))
    bench.decode(4)
    answered = (*PROMPT[:2], 7, 50, 51, 52, 53)
    assert bench.admit(B, answered).first_block_index == 0
    assert bench.admit(C, answered, salt="one").first_block_index == 1


def test_blocks_that_decoding_filled_are_shared_by_the_next_turn() -> None:
    bench = Bench()
    decoded(bench, num_tokens=4)
    # 14 tokens, the first output token and three of four more have KV: 18, four full blocks.
    answer = (7, 50, 51, 52, 53)
    assert bench.admit(B, (*PROMPT, *answer, 1, 2)).first_block_index == 4
    assert bench.admit(C, (*PROMPT, 7, 50, 99, 52, 53)).first_block_index == 4
    bench.cancel(B)
    assert bench.admit(TaskId("d/0"), (*PROMPT, 8, 50, 51)).first_block_index == 3


def test_a_block_whose_newest_token_has_no_kv_is_not_shared() -> None:
    """Bound late, 14 + 2 tokens: the last of the fourth block is computed here."""
    bench = Bench()
    bench.admit(A, output=(7, 8))
    bench.begin(A, 7, 8)
    bench.handle(KvArrived(A))
    assert bench.admit(B, (*PROMPT, 7, 8, 9, 9)).first_block_index == 3
    bench.cancel(B)
    bench.handle(QuarantineCleared(B))
    bench.decode(1)
    assert bench.admit(C, (*PROMPT, 7, 8, 9, 9)).first_block_index == 4


def test_what_is_on_its_way_is_joined_and_awaited_under_the_same_generations() -> None:
    bench = Bench()
    first = bench.admit(A)
    second = bench.admit(B)
    assert (second.first_block_index, len(second.block_ids)) == (3, 1)
    awaited = bench.begin(B)
    assert awaited.block_ids == (*first.block_ids[:3], *second.block_ids)
    assert awaited.generations[:3] == first.generations[:3]
    assert bench.reports(KvArrived(B)) == [DecodeStarted(B)]
    # B saw A's blocks arrive: A's end does not matter any more.
    assert bench.cancel(A) == [RevokeKv(A, first.block_ids[3:])]
    assert bench.admit(C).first_block_index == 3


def test_only_tasks_of_one_sender_join() -> None:
    bench = Bench()
    bench.admit(A)
    assert bench.admit(B, source="prefill-1").first_block_index == 0
    assert bench.admit(C, source="").first_block_index == 0


def test_when_a_transfer_ends_early_those_who_waited_for_it_are_told_and_leave_nothing() -> None:
    bench = Bench()
    bench.admit(A)
    bench.admit(B)
    bench.admit(C, session=2)
    bench.begin(B)
    actions = bench.cancel(A)
    failed = [a.report for a in actions if isinstance(a, SendReport)]
    assert [(f.task_id, f.code) for f in failed if isinstance(f, TaskFailed)] == [
        (C, PREFIX_LOST),
        (B, PREFIX_LOST),
    ]
    assert [a.session_id for a in actions if isinstance(a, SendReport)] == [2, 1]
    for task_id in (A, B, C):
        assert bench.reports(QuarantineCleared(task_id)) == [TaskReleased(task_id)]
    assert bench.core.pool.num_free_blocks == 32
    assert bench.core.num_tasks == 0
    assert bench.admit(B, source="").first_block_index == 0


def test_who_waited_goes_on_where_another_has_seen_the_blocks_arrive() -> None:
    bench = Bench()
    bench.admit(A)
    bench.admit(B)
    bench.admit(C)
    bench.begin(B)
    bench.handle(KvArrived(B))
    assert not [a for a in bench.cancel(A) if isinstance(a, SendReport)]
    bench.begin(C)
    assert bench.reports(KvArrived(C)) == [DecodeStarted(C)]


def test_damage_in_one_transfer_reaches_nobody() -> None:
    bench = Bench()
    bench.admit(A)
    bench.admit(B)
    bench.begin(A)
    reports = bench.reports(KvRefused(A, "kv_corrupted", "bad"))
    assert [(r.task_id, r.code) for r in reports if isinstance(r, TaskFailed)] == [
        (A, "kv_corrupted"),
        (B, PREFIX_LOST),
    ]
    assert bench.core.pool.num_cached_blocks == 0


def test_a_lost_router_takes_those_along_that_wait_for_its_tasks() -> None:
    bench = Bench()
    bench.admit(A)
    bench.admit(B)
    bench.handle(SessionLost(SessionId(1)))
    for task_id in (A, B):
        bench.handle(QuarantineCleared(task_id))
    assert bench.core.num_tasks == 0


def test_kv_of_a_failed_step_is_not_shared() -> None:
    bench = Bench()
    bench.admit(A)
    bench.begin(A)
    bench.handle(KvArrived(A))
    bench.core.plan(0.0)
    bench.handle(StepFailed("not finite"))
    assert bench.admit(B).first_block_index == 0
