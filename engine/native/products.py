"""Products on the processor's matrix unit, by a compiled kernel (engine/native/products.c).

A number of the result depends on its row and its column alone: every number of rows and of threads
gives the same bits.
"""

import ctypes

import torch
from torch import Tensor

from engine.native.calls import ProductCall
from engine.native.library import KernelLibrary

# As in the C source.
_BLOCK, _TILE, _K_STEP = 32, 16, 32


class TiledMatrix:
    """A bfloat16 matrix in the order in which the matrix unit reads it."""

    def __init__(self, weight: Tensor, kernels: KernelLibrary) -> None:
        """`weight` [outputs, inputs] bfloat16 on the CPU; copied. `kernels` can multiply."""
        assert kernels.can_multiply
        assert weight.dtype == torch.bfloat16
        self._shape = weight.shape
        self._multiply = kernels.functions.tandem_multiply
        outputs, inputs = weight.shape
        blocks, steps = -(-outputs // _BLOCK), -(-inputs // _K_STEP)
        padded = weight.new_zeros(blocks * _BLOCK, steps * _K_STEP)
        padded[:outputs, :inputs] = weight
        by_tile = padded.view(blocks, _BLOCK // _TILE, _TILE, steps, _K_STEP // 2, 2)
        # [blocks, steps, 2, K_STEP / 2, TILE, 2]
        self._tiles = by_tile.permute(0, 3, 1, 4, 2, 5).contiguous()

    def dense(self) -> Tensor:
        """[outputs, inputs] the weight as it was given."""
        outputs, inputs = self._shape
        blocks, steps = self._tiles.shape[:2]
        rows = self._tiles.permute(0, 2, 4, 1, 3, 5).reshape(blocks * _BLOCK, steps * _K_STEP)
        return rows[:outputs, :inputs].contiguous()

    @property
    def is_whole(self) -> bool:
        """Whether rows need no padding before they are multiplied."""
        return self._shape[1] % _K_STEP == 0

    def call(self) -> ProductCall:
        """Everything but the rows, for a call from C; the matrix stays this object's."""
        inner = self._tiles.shape[1] * _K_STEP
        return ProductCall(matrix=self._tiles.data_ptr(), inner=inner, columns=self._shape[0])

    def multiply(self, rows: Tensor) -> Tensor:
        """[n, outputs] of rows [n, inputs]."""
        outputs, inputs = self._shape
        padded_inputs = self._tiles.shape[1] * _K_STEP
        if padded_inputs != inputs:
            rows = torch.nn.functional.pad(rows, (0, padded_inputs - inputs))
        rows = rows.contiguous()
        out = rows.new_empty(rows.shape[0], outputs)
        call = ProductCall(
            rows.data_ptr(),
            self._tiles.data_ptr(),
            out.data_ptr(),
            rows.shape[0],
            padded_inputs,
            outputs,
            torch.get_num_threads(),
        )
        self._multiply(ctypes.byref(call))
        return out
