"""From a model folder to a model that can run, and to a fingerprint that tells two models apart."""

import hashlib
from pathlib import Path

import torch

from engine.config_json import CONFIG_FILE
from engine.json_file import read_file
from engine.loading_progress import UNWATCHED, LoadingProgress
from engine.model_config import ModelConfig
from engine.model_folder import ModelFolder, open_model_folder
from engine.model_folder_errors import UnsupportedModelOption
from engine.models.decoder import Decoder
from engine.models.model import Model
from engine.models.row_kernels_choice import RowKernelsName, choose_row_kernels
from engine.models.with_row_kernels import with_row_kernels
from engine.native.choice import KernelChoice, choose_kernels
from engine.parallel_fit import require_fit
from engine.tensor_parallel import RankExchange, config_of_rank, share_of
from engine.weights import load_decoder_weights

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Of each weight file, this many pieces of this many bytes are part of the fingerprint.
_SAMPLE_PIECES = 16
_SAMPLE_PIECE_BYTES = 4096


class DeviceUnavailable(ValueError):
    """The machine has not the device that was asked for."""

    def __init__(self, device: str) -> None:
        super().__init__(f"device {device} is not available on this machine; use --device cpu")
        self.device = device


def load_model(
    folder: str | Path | ModelFolder,
    dtype: str = "float32",
    device: str = "cpu",
    kernels: KernelChoice = "auto",
    exchange: RankExchange | None = None,
    progress: LoadingProgress = UNWATCHED,
    row_kernels: RowKernelsName = "auto",
) -> Decoder:
    """Load a folder for computation in `dtype`: "float32", "bfloat16" or "float16".

    `kernels`: whether compiled ones compute what they can; never on a GPU, nor in float16.
    `exchange`: between the ranks of a worker, of which this process is to have its share of the
    model. `row_kernels`: the same question for a GPU (engine/models/row_kernels.py). Set the number
    of torch threads before.
    Raises: a leaf of ModelFolderError, DeviceUnavailable, NoCommonRowCount, KernelsNotBuilt,
        KernelsNotLoaded, RowKernelsUnavailable, TensorParallelUnfit, ValueError for an unknown
        dtype.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported; use one of {sorted(_DTYPES)}")
    target = checked_device(device)
    checked = folder if isinstance(folder, ModelFolder) else open_model_folder(folder)
    is_compiled = target.type == "cpu" and dtype != "float16"
    progress.phase("preparing kernels")
    compiled = choose_kernels(kernels) if is_compiled else None
    rows = choose_row_kernels(row_kernels, _DTYPES[dtype], target)
    config, share = _own_config(checked), share_of(exchange)
    require_fit(config, share.size)
    progress.phase("loading weights")
    weights = load_decoder_weights(
        config, checked.weight_files, _DTYPES[dtype], target, compiled, exchange, progress
    )
    progress.phase("trying numbers of rows")
    own = config_of_rank(config, share)
    return Decoder(own, weights if rows is None else with_row_kernels(own, weights, rows))


def load_any_model(
    folder: ModelFolder,
    dtype: str,
    device: str = "cpu",
    kernels: KernelChoice = "auto",
    exchange: RankExchange | None = None,
    progress: LoadingProgress = UNWATCHED,
    row_kernels: RowKernelsName = "auto",
) -> Model:
    """As `load_model`; families that it does not know are the transformers library's.

    Those are not cut among ranks. Raises: as `load_model`; LibraryMissing.
    """
    if exchange is not None or isinstance(folder.config, ModelConfig):
        return load_model(folder, dtype, device, kernels, exchange, progress, row_kernels)
    progress.phase("importing transformers")
    # Imported where it is needed: it takes seconds, and few models need it.
    from engine.other.model import load_transformers_model

    return load_transformers_model(folder, _DTYPES[dtype], checked_device(device), progress)


def _own_config(folder: ModelFolder) -> ModelConfig:
    if not isinstance(folder.config, ModelConfig):
        what = "a family that only the transformers library computes"
        raise UnsupportedModelOption(folder.path, what, "use a model of one of Tandem's families")
    return folder.config


def weights_fingerprint(folder: str | Path | ModelFolder) -> str:
    """Sixteen hex digits over config.json and, of each weight file, length, header and a sample.

    And over how positions are rotated where the served context decides that.
    Two workers with different fingerprints must not share KV. Reads well under a megabyte a file.
    Raises: a leaf of ModelFolderError.
    """
    checked = folder if isinstance(folder, ModelFolder) else open_model_folder(folder)
    digest = hashlib.sha256(read_file(checked.path / CONFIG_FILE))
    digest.update(checked.config.rope_choice.encode())
    for path in checked.weight_files:
        _digest_weight_file(path, digest)
    return digest.hexdigest()[:16]


def _digest_weight_file(path: Path, digest: "hashlib._Hash") -> None:
    total = path.stat().st_size
    with path.open("rb") as file:
        length = file.read(8)
        digest.update(total.to_bytes(8, "little") + length)
        digest.update(file.read(int.from_bytes(length, "little")))
        start = file.tell()
        step = max(1, (total - start) // _SAMPLE_PIECES)
        for piece in range(_SAMPLE_PIECES):
            file.seek(start + piece * step)
            digest.update(file.read(_SAMPLE_PIECE_BYTES))


def checked_device(name: str) -> torch.device:
    """A CPU, or a GPU that this machine has. Raises: DeviceUnavailable."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceUnavailable(name) from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceUnavailable(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceUnavailable(name)
    return device
