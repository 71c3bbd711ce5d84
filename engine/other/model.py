"""A model of any family that the transformers library knows, as the engine wants models.

Correct before fast: the library's products give a row other bits in other numbers of rows, so rows
are computed in numbers that were found to agree, by trying the network itself; a mixture of experts
one row at a time, since the library multiplies the rows of an expert together.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from torch import Tensor

from engine.attention.backend import StepAttention
from engine.loading_progress import UNWATCHED, LoadingProgress
from engine.model_config import LayerAttention, ModelShape
from engine.model_folder import ModelFolder
from engine.model_folder_errors import UnsupportedModelOption
from engine.other.known import require_known
from engine.other.network import Network, load_network
from engine.other.trial import is_as_good, relative_error
from engine.row_tiles import NoCommonRowCount, RowTiles

_CANDIDATE_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
# Different tokens of a trial: each is computed in every number of rows, and enough of them are
# compared that other orders of summation show, which in 16 bits change few numbers.
_NUM_KINDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherConfig(ModelShape):
    """The shape of a network, as its modules showed it. See `ModelConfig`."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    layer_attention: tuple[LayerAttention, ...]


class TransformersModel:
    """See `Model`. Built by `load_transformers_model`."""

    def __init__(
        self, network: Network, shape: ModelShape, progress: LoadingProgress = UNWATCHED
    ) -> None:
        """Find the numbers of rows that agree; takes a few forward passes.

        Raises: NoCommonRowCount.
        """
        import transformers

        self._network = network
        seen = network.layers[0]
        self.config = OtherConfig(
            **{field.name: getattr(shape, field.name) for field in fields(shape)},
            num_layers=len(network.layers),
            num_heads=seen.num_heads,
            num_kv_heads=seen.num_kv_heads,
            head_dim=seen.head_dim,
            layer_attention=tuple(layer.attention for layer in network.layers),
        )
        self.device = network.device
        self.dtype = network.dtype
        self.row_tiles = _rows_that_agree(network, shape.vocab_size, progress)
        self.arithmetic = f"transformers-{transformers.__version__}-{self.row_tiles.fingerprint}"

    @property
    def max_rows(self) -> int:
        return self.row_tiles.sizes[-1]

    def hidden(self, token_ids: Tensor, positions: Tensor, attention: StepAttention) -> Tensor:
        """See `Model.hidden`. Raises: ValueError for more than `max_rows` tokens."""
        num_rows = len(token_ids)
        if num_rows > self.max_rows:
            raise ValueError(f"{num_rows} tokens at once, more than {self.max_rows}")
        padding = self.row_tiles.smallest_at_least(num_rows) - num_rows
        with self._network.seat.over(attention, self._network.index_of, num_rows):
            return self._network.hidden(_padded(token_ids, padding), _padded(positions, padding))

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Model.logits`."""
        num_rows = hidden.shape[0]
        bounds = self.row_tiles.cut(num_rows)
        rows = _padded(hidden, bounds[-1] - num_rows)
        pieces = [self._network.logits(rows[start:end]).float() for start, end in pairwise(bounds)]
        if not pieces:
            return hidden.new_empty((0, self.config.vocab_size), dtype=torch.float32)
        return torch.cat(pieces)[:num_rows]


def load_transformers_model(
    folder: ModelFolder,
    dtype: torch.dtype,
    device: torch.device,
    progress: LoadingProgress = UNWATCHED,
) -> TransformersModel:
    """Load, and try against the library by itself.

    Raises: LibraryMissing, UnsupportedModelOption, InvalidWeightFile, NoCommonRowCount.
    """
    require_known(folder)
    network = load_network(folder.path, dtype, device, progress)
    progress.phase("trying numbers of rows")
    model = TransformersModel(network, folder.config, progress)
    progress.phase("trying it against the library")
    error = relative_error(network, model.config, model.hidden, model.max_rows)
    if dtype == torch.float16 and not math.isfinite(error):
        what = "a model whose numbers are too large for float16"
        raise UnsupportedModelOption(folder.path, what, "choose --dtype bfloat16 on every worker")
    if not is_as_good(error, dtype):
        raise UnsupportedModelOption(
            folder.path,
            f"a model whose logits over paged KV are {error:.0%} off",
            "use a model of a family that Tandem computes itself",
        )
    return model


def _padded(rows: Tensor, count: int) -> Tensor:
    return torch.cat((rows, rows.new_zeros((count, *rows.shape[1:])))) if count else rows


@torch.inference_mode()
def _rows_that_agree(network: Network, vocab_size: int, progress: LoadingProgress) -> RowTiles:
    """Numbers of rows at which the network gives a row the same bits, wherever it stands.

    The largest group that holds one which a single row can afford. Raises: NoCommonRowCount.
    """
    candidates = (1,) if network.has_experts else _CANDIDATE_ROWS
    groups: dict[bytes, list[int]] = {}
    for num_tried, rows in enumerate(candidates):
        progress.advanced(num_tried, len(candidates))
        kinds = torch.arange(max(rows, _NUM_KINDS), device=network.device) % _NUM_KINDS
        # Not the first token, which some families embed as zeros.
        token_ids = (1 + kinds * (vocab_size // _NUM_KINDS)) % vocab_size
        pieces: list[Tensor] = []
        for start in range(0, len(kinds), rows):
            some = slice(start, start + rows)
            with network.seat.tracing():
                hidden = network.hidden(token_ids[some], kinds[some])
            pieces.append(torch.cat((hidden.float(), network.logits(hidden).float()), 1))
        result = torch.cat(pieces)
        # As bits: what is no number does not equal itself, and is the trial's to refuse.
        result = result.view(torch.int32)
        first = result[:_NUM_KINDS]
        if bool((result.view(-1, *first.shape) == first).all()):
            groups.setdefault(first.cpu().numpy().tobytes(), []).append(rows)
    if not groups:
        raise NoCommonRowCount()
    bits, sizes = max(groups.items(), key=lambda group: _worth(group[1]))
    return RowTiles(tuple(sizes), hashlib.sha256(bits).hexdigest()[:16])


def _worth(sizes: Sequence[int]) -> tuple[bool, int, int]:
    return min(sizes) <= 16, max(sizes), len(sizes)
