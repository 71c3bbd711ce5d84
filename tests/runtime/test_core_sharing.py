import struct
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.core_sharing import (
    LINGER_S,
    MAX_PATIENCE_S,
    MAX_WAIT_BETWEEN_ASKS_S,
    MIN_CORES_OF_A_SHARE,
    MIN_PATIENCE_S,
    NO_MARK,
    CoreSharing,
    EngineMark,
    max_engines_at_once,
    possible_shares,
    share_of_cores,
)
from runtime.core_sharing_testing import EngineProcess

instants = st.floats(0, 10)
marks = st.builds(EngineMark, instants, instants, instants, instants)


@given(st.integers(1, 64), st.lists(marks, max_size=8), instants, instants)
def test_no_more_engines_compute_at_once_than_there_are_shares(
    num_cores: int, others: list[EngineMark], waiting_since: float, now: float
) -> None:
    share = share_of_cores(num_cores, others, waiting_since, now)
    num_busy = sum(mark.is_busy(now) for mark in others)
    if share is None:
        assert any(mark.is_busy(now) or mark.is_waiting(now) for mark in others)
    else:
        assert num_busy < max_engines_at_once(num_cores)
        assert share in possible_shares(num_cores)
        assert share >= min(num_cores, MIN_CORES_OF_A_SHARE)


@dataclass
class Engine:
    mark: EngineMark = NO_MARK
    waiting_since: float | None = None
    num_steps: int = 0


@given(
    num_cores=st.integers(1, 16),
    durations=st.lists(st.integers(1, 200), min_size=2, max_size=6),
)
def test_engines_that_always_want_cores_take_turns(num_cores: int, durations: list[int]) -> None:
    """Whatever their steps take, none makes two steps while another waits for one."""
    engines = [Engine() for _ in durations]
    now, num_turns = 0.0, 40
    while sum(engine.num_steps for engine in engines) < num_turns:
        now += 0.001
        for engine, duration in zip(engines, durations, strict=True):
            if engine.mark.busy_until > now:
                continue
            if engine.waiting_since is None:
                engine.waiting_since = now
            others = [other.mark for other in engines if other is not engine]
            if share_of_cores(num_cores, others, engine.waiting_since, now) is None:
                engine.mark = EngineMark(0, 0, engine.waiting_since, now + MAX_WAIT_BETWEEN_ASKS_S)
                continue
            until = now + duration / 1000
            engine.mark, engine.waiting_since = EngineMark(until, until), None
            engine.num_steps += 1
        busy = sum(engine.mark.busy_until > now for engine in engines)
        assert busy <= max_engines_at_once(num_cores)
    if max_engines_at_once(num_cores) == 1:
        steps = [engine.num_steps for engine in engines]
        assert max(steps) - min(steps) <= 1


def test_two_engines_of_a_small_machine_take_turns(tmp_path: Path) -> None:
    path = tmp_path / "cores"
    with CoreSharing(path, 2) as prefill, EngineProcess(path, 2) as decode:
        assert prefill.begin(100.0) == 2
        assert decode.begin(100.0) is None
        assert decode.begin(100.099) is None
        prefill.end(100.1)
        # It waited first, so it goes first; then the other, although its last step is later.
        assert prefill.begin(100.101) is None
        assert decode.begin(100.102) == 2
        assert prefill.begin(100.103) is None
        decode.end(100.11)
        assert decode.begin(100.111) is None
        assert prefill.begin(100.112) == 2


def test_engines_of_a_large_machine_compute_at_once(tmp_path: Path) -> None:
    path, num_cores = tmp_path / "cores", 2 * MIN_CORES_OF_A_SHARE
    with CoreSharing(path, num_cores) as prefill, EngineProcess(path, num_cores) as decode:
        assert prefill.begin(100.0) == num_cores
        assert decode.begin(100.0) == MIN_CORES_OF_A_SHARE
        prefill.end(100.1)
        # Between two steps an engine keeps its share.
        assert prefill.begin(100.101) == MIN_CORES_OF_A_SHARE
        prefill.end(100.2)
        decode.end(100.2)
        assert prefill.begin(100.2 + LINGER_S / 2) == MIN_CORES_OF_A_SHARE
        prefill.end(100.3)
        assert prefill.begin(100.3 + 2 * LINGER_S) == num_cores


def test_an_engine_that_was_killed_in_a_step_holds_nobody_up(tmp_path: Path) -> None:
    path = tmp_path / "cores"
    with CoreSharing(path, 2) as prefill:
        with EngineProcess(path, 2) as decode:
            assert decode.begin(10.0) == 2
            assert prefill.begin(10.0) is None
        assert prefill.begin(10.001) == 2
        prefill.end(10.1)
        # Its place is free again.
        with EngineProcess(path, 2) as decode:
            assert decode.begin(20.0) == 2
            assert prefill.begin(20.0) is None


def test_an_engine_that_was_stopped_in_a_step_is_passed_after_a_few_steps_time(
    tmp_path: Path,
) -> None:
    path = tmp_path / "cores"
    with CoreSharing(path, 2) as prefill, EngineProcess(path, 2) as decode:
        # Of the first step nobody knows how long it takes.
        assert decode.begin(0.0) == 2
        assert prefill.begin(MAX_PATIENCE_S / 2) is None
        assert prefill.begin(MAX_PATIENCE_S) == 2
        prefill.end(MAX_PATIENCE_S)
        now = 10.0
        for _ in range(60):
            decode.end(now + 0.01)
            now += 0.02
            assert decode.begin(now) == 2
        assert prefill.begin(now + MIN_PATIENCE_S / 2) is None
        assert prefill.begin(now + MIN_PATIENCE_S) == 2


def test_an_engine_that_no_longer_asks_has_given_up_its_turn(tmp_path: Path) -> None:
    path = tmp_path / "cores"
    with CoreSharing(path, 2) as prefill, EngineProcess(path, 2) as decode:
        assert prefill.begin(1.0) == 2
        assert decode.begin(1.0) is None
        prefill.end(1.001)
        assert prefill.begin(1.002) is None
        assert prefill.begin(1.0 + MAX_WAIT_BETWEEN_ASKS_S) == 2


def test_a_turn_that_was_given_up_counts_for_nothing_later(tmp_path: Path) -> None:
    path = tmp_path / "cores"
    with (
        CoreSharing(path, 2) as prefill,
        EngineProcess(path, 2) as decode,
        EngineProcess(path, 2) as other,
    ):
        assert decode.begin(1.0) == 2
        assert prefill.begin(1.0) is None  # and its only task is cancelled
        decode.end(1.1)
        assert decode.begin(2.0) == 2
        assert other.begin(2.001) is None
        assert prefill.begin(2.002) is None
        decode.end(2.003)
        assert prefill.begin(2.004) is None, "the other has waited longer"
        assert other.begin(2.005) == 2


@pytest.mark.parametrize(
    "mark",
    [
        EngineMark(busy_until=1e6, active_until=1e6),
        EngineMark(active_until=1e6),
        EngineMark(waiting_since=-1.0, waiting_until=1e6),
        EngineMark(waiting_since=-1.0, waiting_until=float("inf")),
        EngineMark(float("nan"), float("nan"), float("nan"), float("nan")),
    ],
)
def test_what_no_engine_of_this_time_can_have_written_holds_nobody_up(
    tmp_path: Path, mark: EngineMark
) -> None:
    """Such as marks on a disk from before the machine's last start."""
    path, num_cores = tmp_path / "cores", 2 * MIN_CORES_OF_A_SHARE
    instants = (mark.busy_until, mark.active_until, mark.waiting_since, mark.waiting_until)
    path.write_bytes(struct.pack("8d", *4 * (0.0,), *instants))
    with CoreSharing(path, num_cores) as engine:
        assert engine.begin(10.0) == num_cores
        assert share_of_cores(2, [mark], 10.0, 10.0) == 2


def test_a_turn_without_a_step_is_given_back_at_once(tmp_path: Path) -> None:
    path, num_cores = tmp_path / "cores", 2 * MIN_CORES_OF_A_SHARE
    with CoreSharing(path, num_cores) as prefill, EngineProcess(path, num_cores) as decode:
        assert prefill.begin(1.0) == num_cores
        prefill.end(1.0, has_computed=False)
        assert decode.begin(1.0) == num_cores


def test_a_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        CoreSharing(tmp_path / "absent" / "cores", 2)
