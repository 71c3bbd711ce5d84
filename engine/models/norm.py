"""Root mean square normalisation. Source: Zhang and Sennrich 2019.

A row's result does not depend on the number of rows.
"""

import torch.nn.functional as F  # noqa: N812 -- torch's own name for it
from torch import Tensor


class RmsNorm:
    """Rows scaled to a root mean square of one, times a weight. Weights do not change."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        """`weight` [width], in the dtype that the product with it is computed in."""
        self.weight = weight
        self._eps = eps

    @property
    def width(self) -> int:
        """Length of a row."""
        return self.weight.shape[0]

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., width] in the dtype of the rows."""
        if rows.dtype == self.weight.dtype:
            return F.rms_norm(rows, self.weight.shape, self.weight, self._eps)
        return F.rms_norm(rows.float(), self.weight.shape, self.weight, self._eps).to(rows.dtype)
