"""A model cut among the ranks of one worker: which share is whose, and what ranks exchange.

By default every matrix is cut by its outputs, and shares of rows are gathered where a product needs
whole ones, so that each number is one dot product in one order, as it is without a cut. The other
way cuts the matrices after attention and inside the MLP by their inputs and adds up the parts, in
the order of the ranks (docs/decisions/tensor-parallelism.md). Nothing here knows how many processes
or machines there are.
"""

from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from engine.linear import Linear
from engine.model_config import ModelConfig
from engine.native.library import KernelLibrary

# How ranks come to a number that needs all of them: whole rows, or a sum of parts.
Reduce: TypeAlias = Literal["gather", "sum"]


class RankExchange(Protocol):
    """What the ranks of a worker do together. Every rank makes the same calls in the same order."""

    @property
    def rank(self) -> int:
        """Of this process, in [0, size)."""
        ...

    @property
    def size(self) -> int: ...

    @property
    def reduce(self) -> Reduce:
        """How the model is to be cut, the same at every rank."""
        ...

    def all_gather(self, rows: Tensor) -> Tensor:
        """[n, size * width] of each rank's [n, width], those of rank 0 first; for every rank.

        Raises: RankLost.
        """
        ...

    def gather(self, rows: Tensor) -> Tensor | None:
        """The same for rank 0 alone; None at the others. Raises: RankLost."""
        ...

    def all_sum(self, rows: Tensor) -> Tensor:
        """[n, width] the sum of each rank's, as `summed` adds it; the same bits for every rank.

        Raises: RankLost.
        """
        ...


@dataclass(frozen=True, slots=True)
class Share:
    """One rank's part of whatever is cut: one of `size` ranges, the last ones maybe short."""

    rank: int
    size: int

    def width_of(self, num: int) -> int:
        """Places for this rank's share of `num`; where it does not divide, some stay empty."""
        return -(-num // self.size)

    def range_of(self, num: int) -> tuple[int, int]:
        """Start and end of the share of `num`; shorter than `width_of`, or empty, at the end."""
        width = self.width_of(num)
        return min(self.rank * width, num), min((self.rank + 1) * width, num)


WHOLE = Share(0, 1)


def share_of(exchange: RankExchange | None) -> Share:
    """None stands for a worker of one rank."""
    return WHOLE if exchange is None else Share(exchange.rank, exchange.size)


def config_of_rank(config: ModelConfig, share: Share) -> ModelConfig:
    """The model as one rank attends with it. Query heads stay with their KV head."""
    return replace(
        config,
        num_heads=config.num_heads // share.size,
        num_kv_heads=config.num_kv_heads // share.size,
    )


class GatheringLinear(Linear):
    """Takes a rank's share of each input row and gives every rank the whole output rows."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        kernels: KernelLibrary | None,
        exchange: RankExchange,
    ) -> None:
        """`weight` [outputs of this rank, all inputs], `bias` of the same outputs."""
        super().__init__(weight, bias, kernels, num_whole_outputs=weight.shape[0] * exchange.size)
        self._exchange = exchange

    @property
    def tiled(self) -> None:
        """None: a call from C could not gather."""
        return None

    def __call__(self, rows: Tensor, bounds: tuple[int, ...]) -> Tensor:
        """[bounds[-1], outputs of all ranks] of rows [bounds[-1], inputs / ranks]."""
        whole = self._exchange.all_gather(rows)
        return self._exchange.all_gather(super().__call__(whole, bounds))


class SummingLinear(Linear):
    """Takes a rank's share of each input row and gives every rank the sum of what all made."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        kernels: KernelLibrary | None,
        exchange: RankExchange,
    ) -> None:
        """`weight` [all outputs, inputs of this rank], `bias` of all outputs."""
        super().__init__(weight, None, kernels)
        self._exchange = exchange
        self._sum_bias = None if bias is None else bias.clone()

    @property
    def bias(self) -> Tensor | None:
        """[outputs], or None; added once, to the sum."""
        return self._sum_bias

    @property
    def tiled(self) -> None:
        """None: a call from C could not exchange."""
        return None

    def __call__(self, rows: Tensor, bounds: tuple[int, ...]) -> Tensor:
        """[bounds[-1], outputs] of rows [bounds[-1], inputs / ranks]."""
        total = self._exchange.all_sum(super().__call__(rows, bounds))
        return total if self._sum_bias is None else total.add_(self._sum_bias)


class HeadLinear(Linear):
    """The output matrix: whole rows in, whole rows out at rank 0, which samples."""

    def __init__(
        self,
        weight: Tensor,
        kernels: KernelLibrary | None,
        exchange: RankExchange,
        vocab_size: int,
    ) -> None:
        """`weight` [Share.width_of(vocab_size), inputs]; rows behind the vocabulary are zero."""
        super().__init__(weight, None, kernels, num_whole_outputs=vocab_size)
        self._exchange = exchange
        self._vocab_size = vocab_size

    def __call__(self, rows: Tensor, bounds: tuple[int, ...]) -> Tensor:
        """[bounds[-1], vocab_size] at rank 0, [bounds[-1], 0] at the others."""
        gathered = self._exchange.gather(super().__call__(rows, bounds))
        if gathered is None:
            return rows.new_empty(rows.shape[0], 0)
        return gathered[:, : self._vocab_size].contiguous()


def joined_columns(shares: Tensor) -> Tensor:
    """[n, size * width] of the ranks' shares [size, n, width]."""
    size, num_rows, width = shares.shape
    return shares.transpose(0, 1).reshape(num_rows, size * width)


def summed(parts: Tensor) -> Tensor:
    """[...] of the ranks' parts [size, ...]: in float32 from rank 0 on, rounded once at the end.

    Elementwise, so a number does not depend on where it lies: the all-reduce of a library chooses
    its order by the size of the message, and a token would depend on its batch.
    """
    total = parts[0].float()
    for part in parts[1:]:
        total = total + part
    return total.to(parts.dtype)


def as_bytes(rows: Tensor) -> Tensor:
    """The numbers as bytes, which every library moves; one dimension."""
    return rows.contiguous().view(-1).view(torch.uint8)
