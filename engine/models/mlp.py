"""The two kinds of MLPs: one for every token, and a mixture of experts.

A mixture computes the rows of one expert together. That changes the number of rows of a product,
which `StepRows` makes harmless, and each token adds up its experts in the order of their numbers,
so its bits do not depend on who else visits them.
"""

from collections.abc import Iterable
from copy import copy
from itertools import accumulate

import torch
from torch import Tensor

from engine.linear import Linear
from engine.model_config import Activation
from engine.models.gated import Gated, choose_gated
from engine.models.step_rows import StepRows
from engine.native.library import KernelLibrary
from engine.tensor_parallel import RankExchange


class DenseMlp:
    """down(activation(gate) * up)."""

    def __init__(
        self,
        gate_up: Linear,
        down: Linear,
        activation: Activation,
        kernels: KernelLibrary | None = None,
    ) -> None:
        """`gate_up` hidden_size -> 2 * intermediate_size, `down` back to hidden_size."""
        self.gate_up = gate_up
        self.down = down
        self.activation = activation
        self._gated = choose_gated(activation, kernels)

    @property
    def linears(self) -> Iterable[Linear]:
        """Every matrix that rows are multiplied with."""
        return (self.gate_up, self.down)

    def __call__(self, rows: Tensor, step: StepRows) -> Tensor:
        """[bounds[-1], hidden_size] of as many rows."""
        return self.down(self.gated(rows, step), step.bounds)

    def gated(self, rows: Tensor, step: StepRows) -> Tensor:
        """[bounds[-1], intermediate_size] what `down` is to be multiplied with."""
        return self._gated(self.gate_up(rows, step.bounds))

    def with_gated(self, gated: Gated) -> "DenseMlp":
        """Over the same matrices, with another kernel for the same function."""
        other = copy(self)
        other._gated = gated
        return other


class MixtureMlp:
    """Each token visits the few experts that a router finds most probable for it."""

    def __init__(
        self,
        router: Linear,
        experts: tuple[DenseMlp, ...],
        num_experts_per_token: int,
        normalizes_weights: bool,
        exchange: RankExchange | None = None,
    ) -> None:
        """`router` hidden_size -> one score for each of the experts.

        With an `exchange`, the experts are one rank's share of all matrices; where it adds, what a
        token's experts give is added up at each rank first.
        """
        self.router = router
        self.experts = experts
        self._num_per_token = num_experts_per_token
        self._normalizes_weights = normalizes_weights
        is_summing = exchange is not None and exchange.reduce == "sum"
        self._gatherer = None if is_summing else exchange
        self._adder = exchange if is_summing else None

    @property
    def linears(self) -> Iterable[Linear]:
        """Every matrix that rows are multiplied with."""
        return (self.router, *(linear for expert in self.experts for linear in expert.linears))

    def __call__(self, rows: Tensor, step: StepRows) -> Tensor:
        """[bounds[-1], hidden_size] of as many rows; padding rows visit nobody and stay zero."""
        scores = self.router(rows, step.bounds)[: step.num_rows].float()
        weights, experts = self._choose(scores)
        # One pair for each visit of a token to an expert, grouped by expert.
        pairs = experts.view(-1)
        order = torch.argsort(pairs, stable=True)
        visitors = rows.index_select(0, order // self._num_per_token)
        grouped = self._visit(visitors, torch.bincount(pairs, minlength=len(self.experts)), step)
        by_pair = torch.empty_like(grouped).index_copy_(0, order, grouped).float()
        by_token = by_pair.view(step.num_rows, self._num_per_token, -1).mul_(weights.unsqueeze(-1))
        total = by_token[:, 0]
        for index in range(1, self._num_per_token):
            total = total + by_token[:, index]
        out = total.to(rows.dtype)
        return step.pad(out if self._adder is None else self._adder.all_sum(out))

    def with_experts(self, experts: tuple[DenseMlp, ...]) -> "MixtureMlp":
        """With as many others, between which the same router chooses."""
        other = copy(self)
        other.experts = experts
        return other

    def _choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and experts, both [num_tokens, num_experts_per_token], by rising expert."""
        likely = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
        likely.div_(likely.sum(-1, keepdim=True))
        weights, experts = torch.topk(likely, self._num_per_token, dim=-1)
        if self._normalizes_weights:
            weights = weights / weights.sum(-1, keepdim=True)
        experts, order = experts.sort(dim=-1)
        return weights.gather(1, order), experts

    def _visit(self, visitors: Tensor, counts: Tensor, step: StepRows) -> Tensor:
        """What each expert makes of its run of rows, in the same order."""
        num_visitors: list[int] = counts.tolist()
        visited: list[tuple[DenseMlp, StepRows]] = []
        gated: list[Tensor] = []
        for expert, end, count in zip(
            self.experts, accumulate(num_visitors), num_visitors, strict=True
        ):
            if count:
                group = StepRows.of(count, step.tiles)
                visited.append((expert, group))
                gated.append(expert.gated(group.pad(visitors[end - count : end]), group))
        if self._gatherer is not None:
            # Once for all experts: each exchange takes a while, however little it moves.
            whole = self._gatherer.all_gather(torch.cat(gated))
            ends = list(accumulate(rows.shape[0] for rows in gated))
            gated = [whole[end - len(rows) : end] for end, rows in zip(ends, gated, strict=True)]
        out = torch.cat(
            [
                expert.down(rows, group.bounds)[: group.num_rows]
                for (expert, group), rows in zip(visited, gated, strict=True)
            ]
        )
        return out if self._gatherer is None else self._gatherer.all_gather(out)


Mlp = DenseMlp | MixtureMlp
