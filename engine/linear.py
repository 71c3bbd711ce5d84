"""A matrix that rows are multiplied with, in the form that this machine multiplies fastest.

How the numbers are laid out and which kernel runs is decided here; that a row's result does not
depend on the other rows is promised by the row counts of engine/row_tiles.py.
"""

import torch
from torch import Tensor

from engine.packed_product import can_pack, multiply_packed, pack
from engine.row_tiles import ProductShape, multiply_in_tiles


class Linear:
    """rows @ weight.T + bias, at row counts that `RowTiles.cut` gave. Weights do not change."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """`weight` [outputs, inputs] as model files store it, `bias` [outputs]; both are copied
        into memory of this object's own."""
        self.num_outputs, self.num_inputs = weight.shape
        self._is_packed = can_pack(weight.dtype, weight.device)
        # Packed, or contiguous as [inputs, outputs]: there more row counts agree bit for bit than
        # with the order of the file.
        self._matrix = pack(weight) if self._is_packed else weight.t().contiguous()
        self._bias = None if bias is None else bias.clone()

    @property
    def product_shape(self) -> ProductShape:
        """What `find_row_tiles` has to examine."""
        matrix = self._matrix
        return ProductShape(
            self.num_inputs, self.num_outputs, matrix.dtype, matrix.device, packed=self._is_packed
        )

    def dense(self) -> Tensor:
        """[outputs, inputs] the weight as it was given; for tests and checks, not for speed."""
        return self._matrix.to_dense() if self._is_packed else self._matrix.t()

    @property
    def bias(self) -> Tensor | None:
        """[outputs], or None."""
        return self._bias

    def __call__(self, rows: Tensor, bounds: tuple[int, ...]) -> Tensor:
        """[bounds[-1], outputs] of rows [bounds[-1], inputs]."""
        if not rows.shape[0]:
            return rows.new_empty(0, self.num_outputs)
        out = multiply_in_tiles(self._multiply, rows, bounds)
        return out if self._bias is None else out.add_(self._bias)

    def _multiply(self, rows: Tensor) -> Tensor:
        if self._is_packed:
            return multiply_packed(rows, self._matrix)
        return torch.mm(rows, self._matrix)

    @staticmethod
    def fused(weights: list[Tensor], biases: list[Tensor] | None = None) -> "Linear":
        """Several projections of the same rows as one; the outputs lie side by side."""
        bias = None if biases is None else torch.cat(biases)
        return Linear(torch.cat(weights) if len(weights) > 1 else weights[0], bias)
