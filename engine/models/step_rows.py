"""The rows of one product, cut so that each row has the same bits whatever the others are."""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.row_tiles import RowTiles


@dataclass(frozen=True, slots=True)
class StepRows:
    """How many rows there are, and the pieces in which matrices are multiplied with them."""

    num_rows: int
    # Pieces with allowed row counts; the last bound is num_rows or, with padding, more.
    bounds: tuple[int, ...]
    tiles: RowTiles

    @classmethod
    def of(cls, num_rows: int, tiles: RowTiles) -> "StepRows":
        return cls(num_rows, tiles.cut(num_rows), tiles)

    def pad(self, rows: Tensor) -> Tensor:
        """[bounds[-1], width]: zero rows behind the `num_rows` given ones."""
        missing = self.bounds[-1] - rows.shape[0]
        return torch.cat((rows, rows.new_zeros(missing, rows.shape[1]))) if missing else rows
