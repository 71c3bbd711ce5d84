"""Ranks of a worker as real processes: the same tokens, and one end for all of them."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from engine.loading import load_model
from engine.runner import InvalidSequence, RankLost
from engine.tensor_parallel_testing import RankThreads, rank_runner
from engine.testing import (
    GREEDY,
    TrialRequest,
    family_fields,
    make_random_model_folder,
    run_together,
)
from runtime.errors import StartupError
from scheduling.ids import BlockId, Incarnation, WorkerId
from scheduling.kv_export import KvExport
from scheduling.sampling import SamplingParams
from scheduling.step import ScheduledChunk, SequenceStart, StepPlan
from scheduling.worker_events import KvSwapped, SwapIn, SwapOut
from worker.rank_channel import RankChannel
from worker.rank_group import rank_processes
from worker.rank_group_testing import (
    NUM_BLOCKS,
    Ranks,
    pushing_config,
    rank_config,
    started_ranks,
)
from worker.rank_messages import RankSpec, RankStarted, public_settings

# For what is done at once on an idle machine.
PATIENCE_S = 120.0
BLOCK_SIZE = 16
WAY = SamplingParams(temperature=0.7, seed=3, num_logprobs=4)
REQUESTS = [
    TrialRequest(tuple(range(3, 50)), 5, WAY, chunk_tokens=20),
    TrialRequest((7, 8, 9), 6, SamplingParams(temperature=0.0, num_prompt_logprobs=2)),
]
WHOLE_PROMPT = ScheduledChunk(0, 0, 20, True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_random_model_folder(folder, "qwen2", seed=9)
    return folder


@pytest.fixture(scope="module")
def ranks(model: Path) -> Iterator[Ranks]:
    with started_ranks(rank_config(model, 2)) as ranks:
        yield ranks


def start(slot: int = 0) -> SequenceStart:
    return SequenceStart(slot, tuple(range(5, 25)), 20, GREEDY, (0, 1, 2))


def test_processes_compute_what_one_process_computes(ranks: Ranks, model: Path) -> None:
    whole = rank_runner(load_model(model), BLOCK_SIZE, NUM_BLOCKS)
    results = run_together(ranks.runner, REQUESTS, BLOCK_SIZE, NUM_BLOCKS)
    expected = run_together(whole, REQUESTS, BLOCK_SIZE, NUM_BLOCKS)
    assert [r.token_ids for r in results] == [r.token_ids for r in expected]
    if ranks.own.arithmetic == whole.arithmetic:
        assert results == expected


def test_processes_that_add_up_parts_compute_what_threads_do(model: Path) -> None:
    torch.set_num_threads(1)
    threads = RankThreads(model, 2, "float32", BLOCK_SIZE, NUM_BLOCKS, reduce="sum")
    try:
        expected = run_together(threads, REQUESTS, BLOCK_SIZE, NUM_BLOCKS)
        config = rank_config(model, 2, dtype="float32", reduce="sum")
        with started_ranks(config) as processes:
            assert "-sum2-" in processes.own.arithmetic
            assert processes.own.arithmetic == threads.arithmetic
            assert run_together(processes.runner, REQUESTS, BLOCK_SIZE, NUM_BLOCKS) == expected
    finally:
        threads.close()


def test_every_rank_has_as_many_blocks_as_the_one_with_least_room(ranks: Ranks) -> None:
    assert ranks.own.kv_pool.num_blocks == NUM_BLOCKS
    ranks.runner.add(SequenceStart(0, (5, 6, 7), 3, GREEDY, (NUM_BLOCKS - 1,)))
    # What rank 0 could take, the others could not.
    assert ranks.runner.step(StepPlan((ScheduledChunk(0, 0, 3, True),))).token_ids
    with pytest.raises(InvalidSequence):
        ranks.runner.extend_blocks(0, (NUM_BLOCKS,))
    ranks.runner.remove(0)


def test_a_sequence_that_is_refused_changes_no_rank(ranks: Ranks) -> None:
    with pytest.raises(InvalidSequence):
        ranks.runner.add(SequenceStart(0, (10**6,), 1, GREEDY, (0,)))
    ranks.runner.add(start())
    first = ranks.runner.step(StepPlan((WHOLE_PROMPT,)))
    ranks.runner.remove(0)
    ranks.runner.add(start())
    assert ranks.runner.step(StepPlan((WHOLE_PROMPT,))) == first
    ranks.runner.remove(0)


def test_kv_that_went_to_host_memory_and_back_is_as_it_was_at_every_rank(ranks: Ranks) -> None:
    ranks.runner.add(start())
    ranks.runner.step(StepPlan((WHOLE_PROMPT,)))
    expected = [ranks.runner.step(StepPlan((ScheduledChunk(0, 20 + i, 1, True),))) for i in (0, 1)]
    ranks.runner.remove(0)

    ranks.runner.add(start())
    ranks.runner.step(StepPlan((WHOLE_PROMPT,)))
    blocks, host, others = ids(0, 1, 2), ids(4, 5, 6), ids(30, 31, 32)
    ranks.kv.perform(SwapOut(blocks, host))
    # Somebody else computes in the blocks meanwhile.
    ranks.runner.add(SequenceStart(1, tuple(range(50, 70)), 20, GREEDY, (0, 1, 2)))
    ranks.runner.step(StepPlan((ScheduledChunk(1, 0, 20, True),)))
    ranks.runner.remove(1)
    ranks.kv.perform(SwapIn(host, others))
    ranks.runner.replace_blocks(0, 0, others)
    again = [ranks.runner.step(StepPlan((ScheduledChunk(0, 20 + i, 1, True),))) for i in (0, 1)]
    assert again == expected
    ranks.runner.remove(0)
    told = told_by(ranks, 2)
    assert [(event.num_blocks, event.is_out) for event in told] == [(3, True), (3, False)]
    assert not ranks.kv.is_polling


def told_by(ranks: Ranks, count: int) -> list[KvSwapped]:
    """What the core hears, once all ranks have said so."""
    events: list[KvSwapped] = []
    while len(events) < count:
        # The socket of a rank that has something to say; the test's own timeout is the bound.
        ranks.group.wait_told(PATIENCE_S)
        events += [event for event in ranks.kv.poll() if isinstance(event, KvSwapped)]
    return events


def ids(*numbers: int) -> tuple[BlockId, ...]:
    return tuple(map(BlockId, numbers))


@pytest.mark.slow
def test_a_killed_rank_ends_the_next_step_and_is_noticed_without_one(model: Path) -> None:
    with started_ranks(rank_config(model, 2)) as ranks:
        ranks.runner.add(start())
        os.kill(ranks.group.process_ids[0], signal.SIGKILL)
        assert ranks.was_lost.wait(PATIENCE_S)
        assert "rank 1 of this worker was ended by SIGKILL" in str(ranks.group.loss)
        with pytest.raises(RankLost, match="rank 1 of this worker was ended by SIGKILL"):
            ranks.kv.poll()
        with pytest.raises(RankLost, match="rank 1 of this worker was ended by SIGKILL"):
            ranks.runner.step(StepPlan((WHOLE_PROMPT,)))


@pytest.mark.slow
def test_a_rank_that_stands_still_is_given_up_in_time(model: Path) -> None:
    # Loading has no longer: not less than a busy machine may take for it.
    with started_ranks(rank_config(model, 2, timeout_s=8.0)) as ranks:
        ranks.runner.add(start())
        (pid,) = ranks.group.process_ids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(RankLost):
            ranks.runner.step(StepPlan((WHOLE_PROMPT,)))
    # Closed, it is gone although it could not end by itself.
    assert not psutil.pid_exists(pid)


@pytest.mark.slow
def test_the_other_ranks_end_with_rank_0_however_it_ends(model: Path) -> None:
    command = [sys.executable, "-m", "worker.rank_group_testing", str(model)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        _, *others = map(int, first.stdout.readline().split())
        processes = [psutil.Process(pid) for pid in others]
        # A rank that stands still cannot end by itself.
        processes[0].suspend()
        first.kill()
        first.wait(PATIENCE_S)
        _, alive = psutil.wait_procs(processes, PATIENCE_S)
    assert len(processes) == 1
    assert not alive


def test_a_peer_that_is_introduced_meets_every_rank(model: Path) -> None:
    with (
        started_ranks(pushing_config(model, 2)) as ranks,
        socket.create_server(("127.0.0.1", 0)) as door,
    ):
        door.settimeout(PATIENCE_S)
        address = f"127.0.0.1:{door.getsockname()[1]}"
        unit_bytes = ranks.own.kv_pool.layout.block_bytes
        own_share = KvExport(
            *("tcp", address, 8, unit_bytes, WorkerId("decode-9"), Incarnation(1), "there"),
            token="0" * 32,
        )
        other_share = replace(own_share, worker_id=WorkerId("decode-9/1"), first_slice=1)
        ranks.kv.introduce(replace(own_share, other_ranks=(other_share,)))
        ranks.kv.poll()
        # Rank 0 would be introduced by the event loop, so this is rank 1.
        caller, _ = door.accept()
        caller.close()


def test_a_loss_before_anybody_asks_for_news_of_it_is_told(model: Path) -> None:
    with rank_processes(rank_config(model, 3)) as group:
        assert group is not None
        was_lost = threading.Event()
        group.watch(was_lost.set)
        os.kill(group.process_ids[1], signal.SIGKILL)
        assert was_lost.wait(PATIENCE_S)
        with pytest.raises(RankLost, match="rank 2 of this worker was ended by SIGKILL"):
            group.watch(lambda: None)
        found = group.loss_after(RuntimeError("another"))
        assert "rank 2 of this worker was ended by SIGKILL" in str(found)


def test_a_rank_that_cannot_load_says_why_in_one_line(
    model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = rank_config(model, 2).model_copy(update={"model": model / "missing"})
    with rank_processes(config) as group:
        assert group is not None
        exchange = group.begin(1, 1)
        with (
            pytest.raises(StartupError, match=r"^rank 1: .*missing") as caught,
            group.losses_end_the_start(),
        ):
            # As in the middle of loading.
            exchange.all_gather(torch.zeros(1, 1))
    assert "\n" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def test_a_rank_that_fails_when_rank_0_has_gone_is_silent(tmp_path: Path) -> None:
    config = rank_config(tmp_path / "missing", 1)
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "worker.rank_process", str(theirs.fileno()), "60.0"]
    with (
        theirs,
        subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE, text=True
        ) as rank,
    ):
        theirs.close()
        channel = RankChannel(ours, PATIENCE_S)
        meeting_place = str(tmp_path / "meeting")
        channel.send(RankSpec("decode", public_settings(config), 0, 1, 1, meeting_place, 60.0))
        assert channel.receive(PATIENCE_S) == RankStarted()
        # Before it has met anybody: there is nobody who would hear why it cannot load.
        channel.close()
        _, told = rank.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in told


def test_a_size_that_does_not_fit_ends_the_start_with_one_line(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    fields = family_fields("llama", num_attention_heads=3, num_key_value_heads=3)
    make_random_model_folder(tmp_path, fields=fields)
    with (
        pytest.raises(StartupError, match=r"it has 3 KV heads; use one of 1$") as caught,
        started_ranks(rank_config(tmp_path, 2)),
    ):
        pass
    assert "\n" not in str(caught.value)
