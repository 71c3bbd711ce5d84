"""Root mean square normalisation. Source: Zhang and Sennrich 2019.

A row's result does not depend on the number of rows.
"""

import torch.nn.functional as F  # noqa: N812 -- torch's own name for it
from torch import Tensor

from engine.native.library import KernelLibrary
from engine.native.rows import normalise


class RmsNorm:
    """Rows scaled to a root mean square of one, times a weight. Weights do not change."""

    def __init__(self, weight: Tensor, eps: float, kernels: KernelLibrary | None = None) -> None:
        """`weight` [width], in the dtype that the product with it is computed in.

        Without `kernels`, torch computes it; the bits may differ.
        """
        self.weight = weight
        self.eps = eps
        self._kernels = kernels

    @property
    def width(self) -> int:
        """Length of a row."""
        return self.weight.shape[0]

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., width] in the dtype of the rows."""
        if self._kernels is not None:
            return normalise(self._kernels, rows, self.weight, self.eps)
        if rows.dtype == self.weight.dtype:
            return F.rms_norm(rows, self.weight.shape, self.weight, self.eps)
        return F.rms_norm(rows.float(), self.weight.shape, self.weight, self.eps).to(rows.dtype)

    def of_sum(self, rows: Tensor, added: Tensor) -> Tensor:
        """Add to the rows, in place, and normalise them; both [n, width], contiguous.

        What was added may be overwritten too: a subclass leaves its result there.
        """
        if self._kernels is not None:
            return normalise(self._kernels, rows, self.weight, self.eps, added)
        return self(rows.add_(added))
