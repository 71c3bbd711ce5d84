"""What a worker would refuse at its start and files already tell: asked before it is started.

The checks are those of the worker itself. None imports torch; what only a library or a device can
tell is asked by worker/preflight_process.py.
"""

from engine.model_config import ModelConfig
from engine.model_folder import ModelFolder
from engine.model_folder_errors import ModelFolderError
from engine.other.known import require_known
from engine.parallel_fit import TensorParallelUnfit, require_fit
from engine.safetensors_header import WeightHeader
from engine.tokenizer import read_backend
from engine.weight_check import located_tensors
from runtime.errors import StartupError
from runtime.worker_config import WorkerConfig
from worker.engine_fit import block_bytes_of, is_kv_measured, num_blocks_of, slices_of
from worker.transport_names import OF_LIBRARIES, transport_names

# A larger one takes its library a second; the router and the workers read it soon enough.
_SMALL_TOKENIZER_BYTES = 1 << 20


def require_settings_fit(config: WorkerConfig, folder: ModelFolder) -> None:
    """Raises: StartupError where a worker with these settings cannot serve this model."""
    transport_names(config)
    size, model = config.tensor_parallel_size, folder.config
    if not isinstance(model, ModelConfig):
        if size > 1:
            raise StartupError(
                f"tensor_parallel_size {size} is not for models that the transformers library "
                "computes; leave it at 1"
            )
        return
    try:
        require_fit(model, size)
    except TensorParallelUnfit as error:
        raise StartupError(str(error)) from error
    if config.num_kv_slices > 1:
        slices_of(config, model.num_kv_heads // size, rank=0)
    if not is_kv_measured(config):
        num_blocks_of(config, block_bytes_of(config, model))


def require_servable(folder: ModelFolder) -> None:
    """Raises: StartupError where no worker can load this folder, which was opened well."""
    try:
        if folder.tokenizer_file.stat().st_size <= _SMALL_TOKENIZER_BYTES:
            read_backend(folder.tokenizer_file)
        if isinstance(folder.config, ModelConfig):
            headers = {path: WeightHeader(path) for path in folder.weight_files}
            located_tensors(folder.config, headers)
        else:
            require_known(folder)
    except ModelFolderError as error:
        raise StartupError(str(error)) from error


def needs_a_process(config: WorkerConfig) -> bool:
    """Whether only a library or a device can tell the rest: worker/preflight_process.py."""
    return config.device == "cuda" or bool(OF_LIBRARIES.intersection(config.transports))
