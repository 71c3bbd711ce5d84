"""For tests: the ranks of one worker as threads of this process, and their exchange in memory."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import Tensor

from engine.attention.choice import AttentionName, AttentionShape, choose_attention
from engine.kv_pool import KvLayout, KvPool
from engine.loading import load_model
from engine.model_runner import ModelRunner
from engine.models.decoder import Decoder
from engine.native.choice import KernelChoice
from engine.runner import LogitsNotFinite, RankLost
from engine.tensor_parallel import Reduce, joined_columns, summed
from scheduling.step import SequenceStart, StepPlan, StepResult

_PATIENCE_S = 60.0
_Result = TypeVar("_Result")


class ThreadExchange:
    """One of `size` ends, an implementation of `RankExchange`; made by `thread_exchanges`."""

    def __init__(
        self,
        rank: int,
        barrier: threading.Barrier,
        shares: list[Tensor | None],
        reduce: Reduce = "gather",
    ) -> None:
        self.rank = rank
        self.size = len(shares)
        self.reduce: Reduce = reduce
        self._barrier = barrier
        self._shares = shares

    def all_gather(self, rows: Tensor) -> Tensor:
        """See `RankExchange`. Raises: RankLost when another thread gave up."""
        return joined_columns(self._of_all(rows))

    def all_sum(self, rows: Tensor) -> Tensor:
        """See `RankExchange`. Raises: RankLost when another thread gave up."""
        return summed(self._of_all(rows))

    def _of_all(self, rows: Tensor) -> Tensor:
        self._shares[self.rank] = rows
        self._wait()
        shares = torch.stack(cast(list[Tensor], self._shares))
        # Nobody writes the next rows before all have read these.
        self._wait()
        return shares

    def gather(self, rows: Tensor) -> Tensor | None:
        """See `RankExchange`. Raises: RankLost when another thread gave up."""
        whole = self.all_gather(rows)
        return whole if self.rank == 0 else None

    def give_up(self) -> None:
        """End every wait, of all threads and for good."""
        self._barrier.abort()

    def _wait(self) -> None:
        try:
            self._barrier.wait(_PATIENCE_S)
        except threading.BrokenBarrierError as error:
            raise RankLost("another thread gave up") from error


def thread_exchanges(size: int, reduce: Reduce = "gather") -> list[ThreadExchange]:
    """The ends of all ranks."""
    barrier, shares = threading.Barrier(size), cast(list[Tensor | None], [None] * size)
    return [ThreadExchange(rank, barrier, shares, reduce) for rank in range(size)]


class RankThreads:
    """A `Runner` whose ranks are threads; rank 0 is the thread that calls."""

    def __init__(
        self,
        folder: Path,
        size: int,
        dtype: str,
        block_size: int,
        num_blocks: int,
        attention: AttentionName = "auto",
        reduce: Reduce = "gather",
        kernels: KernelChoice = "auto",
    ) -> None:
        self._exchanges = thread_exchanges(size, reduce)
        models = [
            load_model(folder, dtype, kernels=kernels, exchange=end) for end in self._exchanges
        ]
        self.ranks = [rank_runner(model, block_size, num_blocks, attention) for model in models]
        self._threads = ThreadPoolExecutor(
            size - 1, "rank", partial(torch.set_num_threads, torch.get_num_threads())
        )

    def on_all(self, call: Callable[[ModelRunner, int], _Result]) -> list[_Result]:
        """What each rank gives, made at once: the ranks may exchange in it."""
        with ThreadPoolExecutor(len(self.ranks)) as threads:
            numbers = range(len(self.ranks))
            return list(threads.map(call, self.ranks, numbers, timeout=_PATIENCE_S))

    @property
    def arithmetic(self) -> str:
        """That of every rank."""
        (name,) = {rank.arithmetic for rank in self.ranks}
        return name

    def add(self, start: SequenceStart) -> None:
        for rank in self.ranks:
            rank.add(start)

    def extend_blocks(self, slot: int, block_ids: Sequence[int]) -> None:
        for rank in self.ranks:
            rank.extend_blocks(slot, block_ids)

    def replace_blocks(self, slot: int, first_index: int, block_ids: Sequence[int]) -> None:
        for rank in self.ranks:
            rank.replace_blocks(slot, first_index, block_ids)

    def remove(self, slot: int) -> None:
        for rank in self.ranks:
            rank.remove(slot)

    def step(self, plan: StepPlan) -> StepResult:
        first, *others = self.ranks
        following = [self._threads.submit(rank.follow, plan) for rank in others]
        try:
            result = first.step(plan)
        except LogitsNotFinite:
            for future in following:
                future.result(_PATIENCE_S)
            raise
        except BaseException:
            self._exchanges[0].give_up()
            raise
        for future in following:
            future.result(_PATIENCE_S)
        for rank in others:
            if result.slots:
                rank.append(result.slots, result.token_ids)
        return result

    def close(self) -> None:
        """End the threads."""
        self._exchanges[0].give_up()
        self._threads.shutdown()


def rank_runner(
    model: Decoder, block_size: int, num_blocks: int, attention: AttentionName = "auto"
) -> ModelRunner:
    """The runner of one rank, or of a model that is whole."""
    config, dtype = model.config, str(model.dtype).removeprefix("torch.")
    layout = KvLayout(config.num_layers, config.num_kv_heads, config.head_dim, block_size, dtype)
    shape = AttentionShape(layout, config.num_heads, config.layer_attention, model.device)
    backend = choose_attention(shape, attention)
    return ModelRunner(model, KvPool(layout, num_blocks), 40, backend)
