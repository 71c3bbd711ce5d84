"""The forward pass of every family: one decoder, whose parts the configuration chooses.

Every operation gives a token the same bits whatever else is in the batch: products run at row
counts that agree (engine/row_tiles.py), and elementwise work avoids kernels whose vector body and
scalar tail differ (docs/decisions/batch-invariance.md).
"""

import torch
from torch import Tensor

from engine.attention.backend import StepAttention
from engine.attention.native import NativeStep
from engine.linear import find_common_tiles
from engine.model_config import ModelConfig
from engine.models.captured_layers import (
    Capture,
    CapturedLayers,
    CapturedShape,
    bucket_sizes,
)
from engine.models.compiled_layers import compile_layers
from engine.models.decoder_weights import DecoderWeights
from engine.models.gated import softcapped
from engine.models.heads import HeadCounts
from engine.models.layer_pass import LayerPass, PassParts
from engine.models.rope import build_rope_table
from engine.models.step_rows import StepRows
from engine.models.with_row_kernels import turns_of
from engine.row_tiles import RowTiles


class Decoder:
    """Weights with their forward pass; stateless between calls."""

    def __init__(self, config: ModelConfig, weights: DecoderWeights) -> None:
        """Find the row counts at which this machine's products agree; takes well under a second.

        `config` is that of one rank where the weights are a share (engine/tensor_parallel.py).

        Set the number of torch threads before: with another number other counts may agree.
        Raises: NoCommonRowCount.
        """
        self.config = config
        self.weights = weights
        self.device = weights.embedding.device
        self.dtype = weights.embedding.dtype
        # The output matrix has tiles of its own: its many columns are tried at few row counts.
        self.row_tiles: RowTiles = find_common_tiles(weights.layer_linears)
        self.head_tiles: RowTiles = find_common_tiles([weights.lm_head])
        ropes = tuple(dict.fromkeys(config.layer_ropes))
        tables = tuple(
            build_rope_table(rope, config.max_position_embeddings, self.device) for rope in ropes
        )
        self._parts = PassParts(
            weights,
            HeadCounts(config.num_heads, config.num_kv_heads, config.head_dim),
            tables,
            rope_indices=tuple(ropes.index(rope) for rope in config.layer_ropes),
            turns=turns_of(weights, tables, config.head_dim),
        )
        self._compiled = compile_layers(
            config, weights, [tables[index] for index in self._parts.rope_indices]
        )
        # None where passes are not recorded.
        self._captured: CapturedLayers | None = None
        # In the dtype of the model, which rounds it.
        scale = torch.tensor(config.hidden_size**0.5, dtype=self.dtype, device=self.device)
        self._embedding_scale = scale if config.is_gemma else None

    @property
    def max_rows(self) -> None:
        """Any number of tokens may be computed at once."""
        return None

    @property
    def runs_layers_at_once(self) -> bool:
        """Whether a step with compiled attention is one call (engine/models/compiled_layers.py)."""
        return self._compiled is not None

    @property
    def arithmetic(self) -> str:
        """Names the order of summation of every product, and the kernels for everything else."""
        kernels, exchange = self.weights.kernels, self.weights.exchange
        others = "torch" if kernels is None else kernels.digest
        if self.weights.row_kernels is not None:
            others = self.weights.row_kernels.name
        if exchange is not None and exchange.reduce == "sum":
            # Sums of another number of parts have other bits.
            others += f"-sum{exchange.size}"
        return f"{self.row_tiles.fingerprint}-{self.head_tiles.fingerprint}-{others}"

    def hidden(self, token_ids: Tensor, positions: Tensor, attention: StepAttention) -> Tensor:
        """What `logits` makes scores of, [num_tokens or more, hidden_size] in the model's dtype.

        Shapes: token_ids, positions [num_tokens] int64. Rows behind num_tokens mean nothing. The
        next call may overwrite the result.
        """
        captured = self._captured
        if captured is not None and token_ids.shape[0] <= captured.max_rows:
            return captured(token_ids, positions, attention)
        if self._compiled is not None and isinstance(attention, NativeStep):
            step = StepRows.of(token_ids.shape[0], self.row_tiles)
            return self._compiled(step.pad(self._embed(token_ids)), positions, attention)
        layers = self._begin(token_ids, positions)
        for index in range(self.config.num_layers):
            layers.take(index, attention.attend(index, *layers.heads_of(index)))
        return layers.finish()

    @torch.inference_mode()
    def capture(self, max_rows: int, capture: Capture) -> None:
        """Record the layers for passes of up to `max_rows` tokens, which are replayed from now on.

        Not where a mixture of experts makes the work depend on the tokens: there nothing is
        recorded. Ranks record together; what they exchange lies between what is recorded.
        """
        if self.config.mixture is not None:
            return
        if self.weights.exchange is not None:
            self.weights.exchange.recorder = capture
        config, sizes = self.config, bucket_sizes(max_rows, self.row_tiles.sizes)
        shape = CapturedShape(config.num_layers, config.num_heads, config.head_dim, self.device)
        self._captured = CapturedLayers(shape, sizes, self._begin, capture)

    def _begin(self, token_ids: Tensor, positions: Tensor) -> LayerPass:
        step = StepRows.of(token_ids.shape[0], self.row_tiles)
        return LayerPass(self._parts, step.pad(self._embed(token_ids)), positions, step)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, vocab_size] float32 of hidden states [n, hidden_size]; n may be 0."""
        step = StepRows.of(hidden.shape[0], self.head_tiles)
        normed = step.pad(self.weights.final_norm(hidden))
        logits = self.weights.lm_head(normed, step.bounds)[: step.num_rows].float()
        cap = self.config.logit_softcap
        return logits if cap is None else softcapped(logits, cap)

    def _embed(self, token_ids: Tensor) -> Tensor:
        embedded = self.weights.embedding.index_select(0, token_ids)
        return embedded if self._embedding_scale is None else embedded.mul_(self._embedding_scale)
