"""Among how many ranks a model can be divided. Without torch: the launcher asks at its start."""

from math import gcd

from engine.model_config import ModelConfig


class TensorParallelUnfit(ValueError):
    """A model's heads or widths cannot be divided among so many ranks."""

    def __init__(self, size: int, possible: tuple[int, ...], reason: str) -> None:
        super().__init__(
            f"tensor_parallel_size {size} does not fit this model: {reason}; "
            f"use one of {', '.join(map(str, possible))}"
        )
        self.size, self.possible = size, possible


def require_fit(config: ModelConfig, size: int) -> None:
    """Raises: TensorParallelUnfit, which names the sizes that this model has."""
    counts = {"KV heads": config.num_kv_heads, "hidden_size": config.hidden_size}
    mixture = config.mixture
    if mixture is None or len(mixture.layers) < config.num_layers:
        counts["intermediate_size"] = config.intermediate_size
    if mixture is not None:
        counts["intermediate_size of the experts"] = mixture.intermediate_size
    unfit = [f"{count} {name}" for name, count in counts.items() if count % size]
    if unfit:
        most = gcd(*counts.values())
        possible = tuple(number for number in range(1, most + 1) if most % number == 0)
        raise TensorParallelUnfit(size, possible, f"it has {' and '.join(unfit)}")
