"""The engine of a worker's rank as its settings want it: model, KV layout, attention."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from engine.attention.backend import AttentionBackend
from engine.attention.choice import AttentionShape, AttentionUnavailable, choose_attention
from engine.cuda_capture import CudaCapture
from engine.kv_memory import TooLittleDeviceMemory
from engine.kv_pool import KvLayout
from engine.loading import DeviceUnavailable, load_any_model
from engine.loading_progress import UNWATCHED, LoadingProgress
from engine.model_folder import ModelFolder, open_model_folder
from engine.model_folder_errors import ModelFolderError
from engine.models.decoder import Decoder
from engine.models.model import Model
from engine.models.row_kernels_choice import RowKernelsUnavailable
from engine.native.library import KernelsNotBuilt, KernelsNotLoaded
from engine.parallel_fit import TensorParallelUnfit
from engine.row_tiles import NoCommonRowCount
from engine.runner import LogitsNotFinite
from engine.tensor_parallel import RankExchange
from kvtransfer.slices import PoolSlices
from runtime.cores import resolve_num_threads
from runtime.errors import StartupError
from runtime.worker_config import WorkerConfig
from worker.engine_fit import resolve_dtype, resolve_kv_dtype, slices_of


@dataclass(frozen=True, slots=True)
class Engine:
    """What a rank computes with, before there is a KV pool."""

    folder: ModelFolder
    dtype: str
    model: Model
    # Of this rank's pool.
    layout: KvLayout
    # What that pool holds of every block.
    slices: PoolSlices
    attention: AttentionBackend

    @property
    def arithmetic(self) -> str:
        """As `ModelRunner.arithmetic`."""
        return f"{self.model.arithmetic}-{self.attention.arithmetic}"


@contextmanager
def engine_errors_in_one_line() -> Iterator[None]:
    """What the model or this machine refuses. Raises: StartupError."""
    try:
        yield
    except (
        ModelFolderError,
        DeviceUnavailable,
        AttentionUnavailable,
        KernelsNotBuilt,
        KernelsNotLoaded,
        NoCommonRowCount,
        RowKernelsUnavailable,
        TensorParallelUnfit,
        TooLittleDeviceMemory,
    ) as error:
        raise StartupError(str(error)) from error
    except LogitsNotFinite as error:
        # Of the pass that measures memory, whose tokens nobody asked for.
        raise StartupError(
            "the model computes NaN or infinity; check its weights, or serve it with "
            "--dtype float32"
        ) from error
    except torch.OutOfMemoryError as error:
        raise StartupError(
            "the device has too little memory for the model and its largest pass; lower "
            "--max-num-batched-tokens or --max-num-seqs, take a smaller model, or divide it among "
            f"more devices with --tensor-parallel-size ({' '.join(str(error).split())})"
        ) from error


def threads_of_rank(config: WorkerConfig) -> int:
    """Each rank's part of the worker's threads, at least one."""
    return max(1, resolve_num_threads(config.num_threads) // config.tensor_parallel_size)


def device_of_rank(device: str, rank: int) -> str:
    """A GPU for each rank, counted from the first one that the process sees."""
    return f"cuda:{rank}" if device == "cuda" else device


def load_engine(
    config: WorkerConfig,
    exchange: RankExchange | None = None,
    progress: LoadingProgress = UNWATCHED,
) -> Engine:
    """Load the model, or a rank's share of it; takes seconds. Raises: StartupError."""
    device = config.device if exchange is None else device_of_rank(config.device, exchange.rank)
    with engine_errors_in_one_line():
        folder = open_model_folder(config.model, config.max_model_len)
        dtype = resolve_dtype(config.dtype, folder.config.torch_dtype, config.device)
        # The kernels are for CPUs, FlashInfer is not.
        kernels = "torch" if config.attention == "flashinfer" else config.attention
        model = load_any_model(
            folder, dtype, device, kernels, exchange, progress, config.row_kernels
        )
        if config.device == "cuda" and config.cuda_graphs and isinstance(model, Decoder):
            progress.phase("recording passes")
            # Before memory is measured: graphs keep some.
            model.capture(config.max_num_seqs, CudaCapture(model.device))
        shape = model.config
        rank = 0 if exchange is None else exchange.rank
        slices = slices_of(config, shape.num_kv_heads, rank)
        layout = KvLayout(
            shape.num_layers,
            shape.num_kv_heads,
            shape.head_dim,
            config.block_size,
            resolve_kv_dtype(config, dtype),
            _head_groups(config, shape.num_kv_heads, slices),
        )
        progress.phase("preparing attention")
        attention = attention_of(config, model, layout)
        return Engine(folder, dtype, model, layout, slices, attention)


def _head_groups(config: WorkerConfig, num_kv_heads: int, slices: PoolSlices) -> int:
    """A slice is one or more groups; FlashInfer wants all heads together or each apart."""
    return num_kv_heads if config.device == "cuda" and slices.total > 1 else slices.num


def attention_of(config: WorkerConfig, model: Model, layout: KvLayout) -> AttentionBackend:
    """What the settings choose for this model and machine. Raises: as `choose_attention`."""
    shape = model.config
    wanted = AttentionShape(
        layout, shape.num_heads, shape.layer_attention, model.device, model.dtype
    )
    return choose_attention(wanted, config.attention, config.shared_prefix_attention)
