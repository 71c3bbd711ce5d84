"""A pass of answers is planned while one runs: the same tokens, and no block with two owners."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decode_worker.core import DecodeCore
from decode_worker.passes_testing import Scene
from decode_worker.planning_ahead import PlanningAheadCore
from decode_worker.settings import DecodeSettings
from decode_worker.turn_taking import new_core
from decode_worker.wanted_testing import BLOCK_SIZE, STOPS_EVERY, Wanted
from engine.runner import LogitsNotFinite
from engine.tokenizer import Tokenizer
from engine.tokenizer_testing import byte_level_backend, write_tokenizer
from scheduling.batch_time_recovery import Preemption
from scheduling.batching_rules import FillToTarget
from scheduling.ids import Incarnation, TaskId, WorkerId
from scheduling.kv_export import KvExport
from scheduling.messages import MakeRoom
from scheduling.step import StepPlan

EXPORT = KvExport("loopback", "a", 8, 64, WorkerId("decode-0"), Incarnation(1), "h")
NUM_BLOCKS = 16
PLAIN = DecodeSettings(NUM_BLOCKS, BLOCK_SIZE, max_num_seqs=4, growth_blocks=1)
KINDS = {
    "decode": PLAIN,
    "swapping": replace(PLAIN, num_swap_blocks=12, preemption=Preemption.FIRST),
    "eager": replace(PLAIN, is_eager=True, num_swap_blocks=8, growth_blocks=2),
    "no prefixes": replace(PLAIN, prefix_caching=False, is_growing_ahead=False),
    "mixed": replace(PLAIN, is_mixed=True, batching=FillToTarget(10), max_num_batched_tokens=10),
    "mixed, in line": replace(
        PLAIN,
        is_mixed=True,
        batching=FillToTarget(10),
        outgrown_wait_in_line=True,
        parked_yields=True,
        num_swap_blocks=8,
    ),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, byte_level_backend())
    return Tokenizer.from_folder(folder)


wanted = st.builds(
    Wanted,
    first_token=st.integers(0, 40),
    num_prompt=st.integers(1, 14),
    max_tokens=st.sampled_from([1, 2, 3, 9, 25, 40]),
)
steps = st.one_of(
    st.tuples(st.just("admit"), wanted),
    *(
        st.tuples(st.just(name), st.integers(0, 9))
        for name in (
            "arrive",
            "grant",
            "refuse",
            "resume",
            "start in line",
            "cancel",
            "quarantine",
            "make room",
        )
    ),
    st.tuples(st.just("poison"), st.integers(0, 3)),
    st.tuples(st.just("break"), st.just(0)),
    st.tuples(st.just("lose session"), st.just(0)),
    # Most of the time it computes.
    *([st.tuples(st.just("turns"), st.integers(1, 5))] * 4),
)


class Troubles:
    """Passes that fail, each once."""

    def __init__(self) -> None:
        self.poisoned: int | None = None
        self.is_broken = False

    def before_step(self, plan: StepPlan) -> None:
        if self.is_broken:
            self.is_broken = False
            raise RuntimeError("as the test wants it")

    def before_result(self, plan: StepPlan) -> None:
        slots = [chunk.slot for chunk in plan.chunks if chunk.samples]
        if self.poisoned is not None and slots:
            index, self.poisoned = self.poisoned, None
            raise LogitsNotFinite((slots[index % len(slots)],))


def play(scene: Scene, troubles: Troubles, name: str, what: int | Wanted) -> None:
    if isinstance(what, Wanted):
        if what.most_blocks <= NUM_BLOCKS:
            scene.admit(what)
        return
    if name == "arrive" and scene.arrivals:
        scene.arrive(what)
    elif name in ("grant", "refuse") and scene.questions:
        scene.answer_growth(what, is_refused=name == "refuse")
    elif name == "resume" and scene.parked:
        scene.resume(what)
    elif name == "start in line" and scene.in_line:
        scene.start_in_line(what)
    elif name == "cancel":
        scene.cancel(what)
    elif name == "quarantine" and scene.quarantined:
        scene.clear_quarantine()
    elif name == "make room":
        scene.send(MakeRoom(TaskId("nowhere/0"), 1 + what, due_in_s=0.01))
    elif name == "poison":
        troubles.poisoned = what
    elif name == "break":
        troubles.is_broken = True
    elif name == "lose session":
        scene.lose_session()
    else:
        for _ in range(what):
            scene.turn()


def check(scene: Scene) -> None:
    """Every answer is the one that it has to be, as far as somebody wanted it."""
    scene.settle()
    scene.check_nothing_left()
    for failed in scene.failures:
        assert re.search(r"\((LogitsNotFinite|RuntimeError)\)", failed.message), "not by the test"
    assert scene.whole or scene.cut
    for sequence, output in scene.whole.items():
        assert output == sequence.answer
    for sequence, output in scene.cut.items():
        assert output == sequence.answer[: len(output)]


@pytest.mark.parametrize(
    ("kind", "is_ahead"),
    # The others show that the scene itself is right.
    [*((kind, True) for kind in KINDS), ("swapping", False), ("mixed, in line", False)],
)
@settings(max_examples=20)
@given(script=st.lists(steps, min_size=3, max_size=40), first=wanted)
def test_whatever_happens_in_whatever_order_tokens_are_right_and_nothing_is_left(
    tokenizer: Tokenizer,
    kind: str,
    is_ahead: bool,
    script: list[tuple[str, int | Wanted]],
    first: Wanted,
) -> None:
    troubles = Troubles()
    chosen = replace(KINDS[kind], plans_ahead=is_ahead)
    scene = Scene(tokenizer, chosen, troubles.before_step, troubles.before_result)
    if first.most_blocks <= NUM_BLOCKS:
        scene.admit(first)
    else:
        scene.admit(Wanted(1, 2, 3))
    for name, what in script:
        play(scene, troubles, name, what)
    check(scene)


def ahead(tokenizer: Tokenizer, kind: DecodeSettings = PLAIN) -> tuple[Scene, PlanningAheadCore]:
    scene = Scene(tokenizer, replace(kind, plans_ahead=True))
    assert isinstance(scene.core, PlanningAheadCore)
    return scene, scene.core


def sequence_of(num_output: int, *, stops: bool, num_prompt: int = 3) -> Wanted:
    """One whose answer has so many tokens, the last of which stops it or is the last allowed."""
    most = 60 if stops else num_output
    candidates = (Wanted(first, num_prompt, most) for first in range(3000))
    return next(
        one
        for one in candidates
        if len(one.answer) == num_output and (one.answer[-1] % STOPS_EVERY == 0) == stops
    )


def started(scene: Scene, *sequences: Wanted) -> list[TaskId]:
    found = [scene.admit(sequence) for sequence in sequences]
    while scene.arrivals:
        scene.arrive()
    return found


def turn_and_grow(scene: Scene) -> None:
    assert scene.turn()
    while scene.questions:
        scene.answer_growth()


def test_one_pass_is_planned_from_scratch_and_all_others_ahead(tokenizer: Tokenizer) -> None:
    scene, _ = ahead(tokenizer)
    (task_id,) = started(scene, sequence_of(20, stops=False))
    one = scene.try_by_id[task_id]
    for num_turns in range(1, 19):
        turn_and_grow(scene)
        assert scene.passes is not None
        assert scene.passes.is_running
        # One token a turn, and one more is being computed.
        assert len(one.output) == 1 + num_turns
        assert len(scene.runner.steps) == num_turns + 1
    check(scene)
    assert len(scene.runner.steps) == 19, "of an answer that surely ends, nothing more is computed"


def test_an_answer_that_stops_keeps_blocks_and_slot_until_the_pass_ahead_has_ended(
    tokenizer: Tokenizer,
) -> None:
    scene, core = ahead(tokenizer)
    stops, goes_on = sequence_of(6, stops=True), sequence_of(20, stops=False)
    task_id, _ = started(scene, stops, goes_on)
    while stops not in scene.whole:
        turn_and_grow(scene)
    # Its last token is out; the pass that runs has a row of it all the same.
    assert core.num_leaving == 1
    assert not scene.try_by_id[task_id].is_over
    held = set(core.pool.blocks_of(task_id))
    assert held & scene.runner.blocks_under_way
    assert len(scene.runner.live_slots) == 2
    scene.turn()
    assert core.num_leaving == 0
    assert scene.try_by_id[task_id].is_over
    assert len(scene.runner.live_slots) == 1
    check(scene)


def test_an_answer_that_is_cancelled_is_released_when_the_pass_that_runs_has_ended(
    tokenizer: Tokenizer,
) -> None:
    scene, _ = ahead(tokenizer)
    (task_id,) = started(scene, sequence_of(20, stops=False))
    scene.turn()
    num_tokens = len(scene.try_by_id[task_id].output)
    scene.cancel(0)
    scene.cancel(0)
    assert not scene.try_by_id[task_id].is_over
    assert scene.turn()
    assert scene.try_by_id[task_id].is_over
    assert len(scene.try_by_id[task_id].output) == num_tokens, "nobody wants to hear of it"
    scene.check_nothing_left()


def test_who_has_arrived_joins_the_pass_ahead(tokenizer: Tokenizer) -> None:
    scene, _ = ahead(tokenizer)
    started(scene, sequence_of(20, stops=False))
    scene.turn()
    started(scene, sequence_of(12, stops=False, num_prompt=4))
    scene.turn()
    assert [len(step.chunks) for step in scene.runner.steps] == [1, 1, 2]
    check(scene)


def test_answers_make_room_for_a_prompt_when_nothing_runs_any_more(tokenizer: Tokenizer) -> None:
    scene, _ = ahead(tokenizer, KINDS["mixed, in line"])
    scene.admit(sequence_of(30, stops=False))
    while not (scene.passes is not None and scene.passes.is_running):
        turn_and_grow(scene)
    scene.send(MakeRoom(TaskId("nowhere/0"), 1, due_in_s=0.01))
    before = scene.num_room_made
    scene.turn()
    assert (before, scene.num_room_made) == (0, 1)
    check(scene)


def test_a_prompt_is_begun_although_answers_run(tokenizer: Tokenizer) -> None:
    scene, _ = ahead(tokenizer, KINDS["mixed"])
    scene.admit(sequence_of(30, stops=False))
    for _ in range(5):
        turn_and_grow(scene)
    scene.admit(Wanted(2, 9, 3))
    turn_and_grow(scene)  # the pass that runs comes to its end
    turn_and_grow(scene)
    assert max(chunk.num_tokens for chunk in scene.runner.steps[-1].chunks) == 9
    check(scene)


def test_who_lacks_room_is_not_passed_over_where_one_is_to_make_room_at_once(
    tokenizer: Tokenizer,
) -> None:
    scene, _ = ahead(tokenizer, KINDS["eager"])
    goes_on = sequence_of(30, stops=False, num_prompt=4)
    refused, _ = started(scene, sequence_of(30, stops=False), goes_on)
    while not scene.parked:
        scene.turn()
        while scene.questions:
            scene.answer_growth(is_refused=scene.questions[0].task_id == refused)
    assert goes_on not in scene.whole
    check(scene)


def test_a_pass_that_fails_takes_the_one_behind_it_along(tokenizer: Tokenizer) -> None:
    troubles = Troubles()
    scene = Scene(
        tokenizer, replace(PLAIN, plans_ahead=True), troubles.before_step, troubles.before_result
    )
    bad, good = sequence_of(20, stops=False), sequence_of(12, stops=False, num_prompt=4)
    started(scene, bad, good)
    scene.turn()
    troubles.poisoned = 0
    scene.turn()
    assert [failed.task_id for failed in scene.failures] == ["0/0"]
    assert scene.runner.live_slots == (1,)
    check(scene)
    assert scene.whole.keys() == {good}


def test_only_those_settings_plan_ahead() -> None:
    assert type(new_core(replace(PLAIN, plans_ahead=True), EXPORT)) is PlanningAheadCore
    assert type(new_core(PLAIN, EXPORT)) is DecodeCore
