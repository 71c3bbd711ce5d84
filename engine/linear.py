"""A matrix that rows are multiplied with, in the form that this machine multiplies fastest.

How the numbers are laid out and which kernel runs is decided here; that a row's result does not
depend on the other rows is promised by the row counts of engine/row_tiles.py.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from engine.native.library import KernelLibrary
from engine.native.products import TiledMatrix
from engine.packed_product import can_pack, multiply_packed, pack
from engine.row_tiles import (
    ProductShape,
    RowTiles,
    columns_agree,
    find_row_tiles,
    multiply_in_tiles,
)


class Linear:
    """rows @ weight.T + bias, at row counts that `RowTiles.cut` gave. Weights do not change."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        kernels: KernelLibrary | None = None,
        *,
        num_whole_outputs: int | None = None,
    ) -> None:
        """`weight` [outputs, inputs] as model files store it, `bias` [outputs]; both are copied
        into memory of this object's own. `num_whole_outputs`: of the matrix that this is a share
        of (engine/tensor_parallel.py)."""
        self.num_outputs, self.num_inputs = weight.shape
        self._num_whole_outputs = num_whole_outputs or self.num_outputs
        self._matrix, self._product_shape = _stored(weight, kernels)
        self._bias = None if bias is None else bias.clone()

    @property
    def product_shape(self) -> ProductShape | None:
        """What `find_row_tiles` has to examine; None where every number of rows is alike."""
        return self._product_shape

    @property
    def whole_product_shape(self) -> ProductShape | None:
        """The same of the matrix that this is a share of."""
        shape = self._product_shape
        return None if shape is None else replace(shape, columns=self._num_whole_outputs)

    def dense(self) -> Tensor:
        """[outputs, inputs] the weight as it was given; for tests and checks, not for speed."""
        return self._matrix.dense()

    @property
    def bias(self) -> Tensor | None:
        """[outputs], or None."""
        return self._bias

    @property
    def tiled(self) -> TiledMatrix | None:
        """The matrix, if it is multiplied on the matrix unit."""
        return self._matrix if isinstance(self._matrix, TiledMatrix) else None

    def __call__(self, rows: Tensor, bounds: tuple[int, ...]) -> Tensor:
        """[bounds[-1], outputs] of rows [bounds[-1], inputs]."""
        if not rows.shape[0]:
            return rows.new_empty(0, self.num_outputs)
        out = multiply_in_tiles(self._matrix.multiply, rows, bounds)
        return out if self._bias is None else out.add_(self._bias)

    @staticmethod
    def fused(
        weights: list[Tensor],
        biases: list[Tensor] | None = None,
        kernels: KernelLibrary | None = None,
        num_whole_outputs: int | None = None,
    ) -> "Linear":
        """Several projections of the same rows as one; the outputs lie side by side."""
        weight, bias = side_by_side(weights), None if biases is None else torch.cat(biases)
        return Linear(weight, bias, kernels, num_whole_outputs=num_whole_outputs)


def side_by_side(weights: list[Tensor]) -> Tensor:
    """[all outputs, inputs] of matrices [outputs, inputs]."""
    return torch.cat(weights) if len(weights) > 1 else weights[0]


def product_shapes(linears: Iterable[Linear]) -> Iterator[ProductShape]:
    """What `find_row_tiles` has to examine."""
    return (shape for linear in linears if (shape := linear.product_shape) is not None)


def find_common_tiles(linears: Iterable[Linear]) -> RowTiles:
    """The best row counts for all these products, as `find_row_tiles`.

    Shares of matrices get the counts, and with them the fingerprint, of the whole matrices where
    a number has the same bits in both; else counts and a fingerprint of their own.
    Raises: NoCommonRowCount.
    """
    cut = list(linears)
    whole = [shape for linear in cut if (shape := linear.whole_product_shape) is not None]
    shares = list(product_shapes(cut))
    tiles = find_row_tiles(whole)
    pairs = dict.fromkeys(zip(whole, shares, strict=True))
    if all(columns_agree(shape, share.columns, tiles.sizes) for shape, share in pairs):
        return tiles
    return find_row_tiles(shares)


class _Matrix(Protocol):
    """A weight [outputs, inputs] in some order in memory."""

    def dense(self) -> Tensor: ...

    def multiply(self, rows: Tensor) -> Tensor: ...


class _PackedMatrix:
    def __init__(self, weight: Tensor) -> None:
        self._packed = pack(weight)

    def dense(self) -> Tensor:
        return self._packed.to_dense()

    def multiply(self, rows: Tensor) -> Tensor:
        return multiply_packed(rows, self._packed)


class _PlainMatrix:
    def __init__(self, weight: Tensor) -> None:
        # Contiguous as [inputs, outputs]: there more row counts agree bit for bit than with the
        # order of the file.
        self._matrix = weight.t().contiguous()

    def dense(self) -> Tensor:
        return self._matrix.t()

    def multiply(self, rows: Tensor) -> Tensor:
        return torch.mm(rows, self._matrix)


def _stored(weight: Tensor, kernels: KernelLibrary | None) -> tuple[_Matrix, ProductShape | None]:
    if kernels is not None and kernels.can_multiply and weight.dtype == torch.bfloat16:
        return TiledMatrix(weight, kernels), None
    is_packed = can_pack(weight.dtype, weight.device)
    outputs, inputs = weight.shape
    shape = ProductShape(inputs, outputs, weight.dtype, weight.device, packed=is_packed)
    return (_PackedMatrix if is_packed else _PlainMatrix)(weight), shape
