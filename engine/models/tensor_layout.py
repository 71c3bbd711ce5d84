"""Which tensors of the files a model is made of: their names and shapes, family by family."""

from collections.abc import Iterator
from dataclasses import dataclass

from engine.model_config import ModelConfig

Shape = tuple[int, ...]

# How files of vision models name the tensors of their text part.
_TEXT_PREFIXES = {
    "model.language_model.": "model.",
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
}


def canonical_name(name: str) -> str:
    """The name that a tensor of a vision model's text part has in a text model."""
    for prefix, ours in _TEXT_PREFIXES.items():
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    return name


@dataclass(frozen=True, slots=True)
class StackedTensors:
    """Projections of the same rows, which become one matrix; most often only one."""

    # (name without ".weight", outputs of each thing that it makes, such as queries and keys)
    projections: tuple[tuple[str, tuple[int, ...]], ...]
    num_inputs: int
    has_bias: bool = False

    @property
    def num_outputs(self) -> int:
        return sum(sum(parts) for _, parts in self.projections)

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        for name, parts in self.projections:
            yield f"{name}.weight", (sum(parts), self.num_inputs)
            if self.has_bias:
                yield f"{name}.bias", (sum(parts),)


@dataclass(frozen=True, slots=True)
class MlpTensors:
    """A gated MLP."""

    gate_up: StackedTensors
    down: StackedTensors

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        yield from self.gate_up.shapes()
        yield from self.down.shapes()


@dataclass(frozen=True, slots=True)
class MixtureTensors:
    """A router and its experts."""

    router: StackedTensors
    experts: tuple[MlpTensors, ...]

    def shapes(self) -> Iterator[tuple[str, Shape]]:
        yield from self.router.shapes()
        for expert in self.experts:
            yield from expert.shapes()


@dataclass(frozen=True, slots=True)
class LayerTensors:
    """One layer. Norms by their name with ".weight"; None where the family has none."""

    input_norm: str
    qkv: StackedTensors
    attention_out: StackedTensors
    mlp_norm: str
    mlp: MlpTensors | MixtureTensors
    query_norm: str | None
    key_norm: str | None
    attention_out_norm: str | None
    mlp_out_norm: str | None


def layer_tensors(config: ModelConfig, index: int) -> LayerTensors:
    """The tensors of layer `index`."""
    prefix = f"model.layers.{index}."
    attention = prefix + "self_attn."
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    if config.architecture == "phi3":
        outputs: dict[str, tuple[int, ...]] = {"qkv_proj": (queries, keys, keys)}
    else:
        outputs = {"q_proj": (queries,), "k_proj": (keys,), "v_proj": (keys,)}
    projections = tuple((attention + name, parts) for name, parts in outputs.items())
    gemma, qk_norm = config.is_gemma, config.qk_norm
    before_mlp = "pre_feedforward" if gemma else "post_attention"
    return LayerTensors(
        input_norm=f"{prefix}input_layernorm.weight",
        qkv=StackedTensors(projections, config.hidden_size, config.qkv_bias),
        attention_out=StackedTensors(
            ((attention + "o_proj", (config.hidden_size,)),), queries, config.o_bias
        ),
        mlp_norm=f"{prefix}{before_mlp}_layernorm.weight",
        mlp=_mlp_tensors(config, index, prefix),
        query_norm=f"{attention}q_norm.weight" if qk_norm else None,
        key_norm=f"{attention}k_norm.weight" if qk_norm else None,
        attention_out_norm=f"{prefix}post_attention_layernorm.weight" if gemma else None,
        mlp_out_norm=f"{prefix}post_feedforward_layernorm.weight" if gemma else None,
    )


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Every tensor that the model needs, by its name in the files."""
    hidden, head = (config.hidden_size,), (config.head_dim,)
    shapes: dict[str, Shape] = {
        "model.embed_tokens.weight": (config.vocab_size, config.hidden_size),
        "model.norm.weight": hidden,
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, config.hidden_size)
    for index in range(config.num_layers):
        layer = layer_tensors(config, index)
        shapes[layer.input_norm] = shapes[layer.mlp_norm] = hidden
        shapes |= {name: head for name in (layer.query_norm, layer.key_norm) if name}
        outer = (layer.attention_out_norm, layer.mlp_out_norm)
        shapes |= {name: hidden for name in outer if name}
        for part in (layer.qkv, layer.attention_out, layer.mlp):
            shapes.update(part.shapes())
    return shapes


def _mlp_tensors(config: ModelConfig, index: int, prefix: str) -> MlpTensors | MixtureTensors:
    hidden, mixture = config.hidden_size, config.mixture
    if mixture is None or index not in mixture.layers:
        mlp, inner = prefix + "mlp.", config.intermediate_size
        if config.architecture == "phi3":
            gate_up = StackedTensors(((mlp + "gate_up_proj", (inner, inner)),), hidden)
            return MlpTensors(gate_up, StackedTensors(((mlp + "down_proj", (hidden,)),), inner))
        return _gated_tensors(config, mlp, ("gate_proj", "up_proj", "down_proj"), inner)
    is_mixtral = config.architecture == "mixtral"
    block = prefix + ("block_sparse_moe." if is_mixtral else "mlp.")
    names = ("w1", "w3", "w2") if is_mixtral else ("gate_proj", "up_proj", "down_proj")
    experts = tuple(
        _gated_tensors(config, f"{block}experts.{number}.", names, mixture.intermediate_size)
        for number in range(mixture.num_experts)
    )
    router = StackedTensors(((block + "gate", (mixture.num_experts,)),), hidden)
    return MixtureTensors(router, experts)


def _gated_tensors(
    config: ModelConfig, prefix: str, names: tuple[str, str, str], inner: int
) -> MlpTensors:
    """`names` of gate, up and down."""
    gate, up, down = (prefix + name for name in names)
    return MlpTensors(
        StackedTensors(((gate, (inner,)), (up, (inner,))), config.hidden_size, config.mlp_bias),
        StackedTensors(((down, (config.hidden_size,)),), inner, config.mlp_bias),
    )
