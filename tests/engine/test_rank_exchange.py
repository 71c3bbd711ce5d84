"""Ranks exchange rows: one contract for all ways, and what a lost rank looks like to the others."""

import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from engine.rank_exchange import DistributedExchange
from engine.runner import RankLost
from engine.tensor_parallel import RankExchange, summed
from engine.tensor_parallel_testing import thread_exchanges

PATIENCE_S = 60.0
SIZE = 3
_Result = TypeVar("_Result")


def gloo_exchanges(folder: Path, size: int, timeout_s: float) -> list[DistributedExchange]:
    """Real gloo between threads of this process."""
    cpu, meeting_place = torch.device("cpu"), folder / "meeting"
    ends = [DistributedExchange(rank, size, cpu, timeout_s) for rank in range(size)]
    together(ends, lambda end: end.join(meeting_place, PATIENCE_S))
    return ends


_End = TypeVar("_End", bound=RankExchange)


def together(ends: Sequence[_End], call: Callable[[_End], _Result]) -> list[_Result]:
    with ThreadPoolExecutor(len(ends)) as threads:
        return list(threads.map(call, ends, timeout=PATIENCE_S))


@pytest.fixture(params=["gloo", "threads"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Sequence[RankExchange]:
    if request.param == "threads":
        return thread_exchanges(SIZE)
    return gloo_exchanges(tmp_path, SIZE, PATIENCE_S)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_rank_gets_the_columns_of_all_ranks_in_their_order(
    ends: Sequence[RankExchange], dtype: torch.dtype
) -> None:
    whole = torch.randn(5, 4 * SIZE).to(dtype)

    def gathered(end: RankExchange) -> list[torch.Tensor | None]:
        mine = whole[:, 4 * end.rank : 4 * (end.rank + 1)]
        # A view with gaps, one row, none.
        every = [end.all_gather(rows) for rows in (mine, mine[:1], mine[:0])]
        return [*every, end.gather(mine), end.gather(mine[:0])]

    results = together(ends, gathered)
    for result in results:
        expected = [whole, whole[:1], whole[:0]]
        for rows, wanted in zip(result[:3], expected, strict=True):
            assert rows is not None
            assert torch.equal(rows, wanted)
    first, *others = [result[3:] for result in results]
    assert first[0] is not None
    assert torch.equal(first[0], whole)
    assert first[1] is not None
    assert first[1].shape == (0, 4 * SIZE)
    assert others == [[None, None]] * (SIZE - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# Little is added up by every rank, much by each a share.
@pytest.mark.parametrize("num_rows", [0, 1, 5, 9_000, 9_001])
def test_every_rank_gets_the_sum_in_the_order_of_ranks_however_much_it_is(
    ends: Sequence[RankExchange], dtype: torch.dtype, num_rows: int
) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    parts = torch.randn(SIZE, num_rows, 4, generator=generator).to(dtype)
    for found in together(ends, lambda end: end.all_sum(parts[end.rank])):
        assert found.dtype == dtype
        assert torch.equal(found, summed(parts))


def test_a_rank_that_does_not_come_is_lost_in_time(tmp_path: Path) -> None:
    first, _ = gloo_exchanges(tmp_path, 2, timeout_s=0.5)
    with pytest.raises(RankLost, match="rank 0 could not exchange"):
        first.all_gather(torch.zeros(2, 2))


def test_ranks_that_never_meet_are_lost_in_time(tmp_path: Path) -> None:
    end = DistributedExchange(0, 2, torch.device("cpu"), timeout_s=PATIENCE_S)
    with pytest.raises(RankLost, match="rank 0 could not exchange"):
        end.join(tmp_path / "meeting", timeout_s=0.5)


def test_a_rank_may_start_later_than_an_exchange_may_take(tmp_path: Path) -> None:
    meeting_place = tmp_path / "meeting"
    early, late = (
        DistributedExchange(rank, 2, torch.device("cpu"), timeout_s=0.2) for rank in range(2)
    )
    with ThreadPoolExecutor(1) as thread:
        joining = thread.submit(early.join, meeting_place, PATIENCE_S)
        with pytest.raises(TimeoutError):
            joining.result(timeout=1.0)
        late.join(meeting_place, PATIENCE_S)
        joining.result(timeout=PATIENCE_S)


def test_once_ranks_have_met_they_need_the_meeting_place_no_more(tmp_path: Path) -> None:
    ends = gloo_exchanges(tmp_path, 2, PATIENCE_S)
    shutil.rmtree(tmp_path)
    for row in together(ends, lambda end: end.all_gather(torch.tensor([[1.0 + end.rank]]))):
        assert row.tolist() == [[1.0, 2.0]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_a_rank_that_has_met_the_others_needs_the_meeting_place_no_more(
    tmp_path: Path,
) -> None:
    # Two ranks of NCCL need two devices.
    end = DistributedExchange(0, 1, torch.device("cuda:0"), PATIENCE_S)
    end.join(tmp_path / "meeting", PATIENCE_S)
    shutil.rmtree(tmp_path)
    assert end.all_gather(torch.ones(1, 1, device="cuda:0")).tolist() == [[1.0]]


def test_a_thread_that_gives_up_is_lost_to_the_others() -> None:
    first, second = thread_exchanges(2)
    giving_up = threading.Thread(target=second.give_up)
    giving_up.start()
    with pytest.raises(RankLost):
        first.gather(torch.zeros(1, 1))
    giving_up.join(PATIENCE_S)
