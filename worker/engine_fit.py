"""What of a worker's settings has to fit its model, as far as files tell. Without torch.

Asked by a worker at its start, and before that by whoever starts it (worker/preflight.py).
"""

from math import prod
from typing import TYPE_CHECKING

from engine.kv_sizes import BYTES_BY_DTYPE, block_elements
from engine.model_config import ModelConfig
from engine.model_folder import ModelFolder
from engine.models.tensor_layout import expected_shapes
from engine.safetensors_header import WeightHeader
from runtime.errors import StartupError
from runtime.worker_config import WorkerConfig

if TYPE_CHECKING:
    from kvtransfer.slices import PoolSlices

# How safetensors spells them.
_SAVED_NAMES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def resolve_dtype(wanted: str, saved: str, device: str) -> str:
    """What a model that was `saved` in some dtype is computed in; `wanted` may be "auto"."""
    if wanted != "auto":
        return wanted
    # float16 has no fast path on a CPU; its values fit float32 exactly.
    is_fast = saved == "bfloat16" or (saved == "float16" and device == "cuda")
    return saved if is_fast else "float32"


def resolve_kv_dtype(config: WorkerConfig, dtype: str) -> str:
    """Of the KV of a model that is computed in `dtype`."""
    return dtype if config.kv_dtype == "auto" else config.kv_dtype


def block_bytes_of(config: WorkerConfig, model: ModelConfig) -> int:
    """Of one KV block, in the pools of all ranks together."""
    dtype = resolve_dtype(config.dtype, model.torch_dtype, config.device)
    shape = (model.num_layers, model.num_kv_heads, model.head_dim, config.block_size)
    return block_elements(*shape) * BYTES_BY_DTYPE[resolve_kv_dtype(config, dtype)]


def is_kv_measured(config: WorkerConfig) -> bool:
    """Whether a GPU says how many blocks there are, when the model is in it."""
    is_set = config.num_blocks is not None or "kv_cache_mib" in config.model_fields_set
    return config.device == "cuda" and not is_set


def num_blocks_of(config: WorkerConfig, block_bytes: int) -> int:
    """As set, for blocks of so many bytes in all ranks. Raises: StartupError where none fits."""
    if config.num_blocks is not None:
        return config.num_blocks
    num_blocks = config.kv_cache_mib * 2**20 // block_bytes
    if num_blocks < 1:
        raise StartupError(
            f"one KV block takes {block_bytes} bytes, more than kv_cache_mib "
            f"{config.kv_cache_mib}; raise it, or lower block_size"
        )
    return num_blocks


def slices_of(config: WorkerConfig, num_kv_heads: int, rank: int) -> "PoolSlices":
    """What the pool of a rank with so many heads holds of every block. Raises: StartupError."""
    # Arrays take a tenth of a second to import, which a launcher saves where nothing is cut.
    from kvtransfer.errors import LayoutMismatch
    from kvtransfer.slices import PoolSlices

    try:
        slices = PoolSlices.of_rank(rank, config.tensor_parallel_size, config.num_kv_slices)
        slices.require_heads(num_kv_heads)
    except LayoutMismatch as error:
        raise StartupError(str(error)) from error
    return slices


def kv_bytes_of(config: WorkerConfig, folder: ModelFolder) -> int:
    """Of a worker's whole KV cache, as its settings have it. Raises: StartupError."""
    if not isinstance(folder.config, ModelConfig):
        # How many heads it has, only its library knows.
        return 0 if config.num_blocks is not None else config.kv_cache_mib * 2**20
    block_bytes = block_bytes_of(config, folder.config)
    return num_blocks_of(config, block_bytes) * block_bytes


def weight_bytes_of(config: WorkerConfig, folder: ModelFolder) -> int:
    """Of the weights in all ranks of a worker that it has in memory of its own, on a CPU.

    The transformers library maps what it need not convert: those pages are the files', the same
    for all workers, and need not be in memory at once.
    """
    model = folder.config
    dtype = resolve_dtype(config.dtype, model.torch_dtype, config.device)
    if isinstance(model, ModelConfig):
        num_elements = sum(map(prod, expected_shapes(model).values()))
    else:
        headers = map(WeightHeader, folder.weight_files)
        saved = _SAVED_NAMES[dtype]
        num_elements = sum(header.num_elements_besides(saved) for header in headers)
    return num_elements * BYTES_BY_DTYPE[dtype]
