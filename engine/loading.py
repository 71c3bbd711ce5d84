"""From a model folder to a model that can run, and to a fingerprint that tells two models apart."""

import hashlib
from pathlib import Path

import torch

from engine.config_json import CONFIG_FILE
from engine.json_file import read_file
from engine.model_folder import ModelFolder, open_model_folder
from engine.models.decoder import Decoder
from engine.native.choice import KernelChoice, choose_kernels
from engine.weights import load_decoder_weights

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
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
) -> Decoder:
    """Load a folder for computation in `dtype`, "float32" or "bfloat16".

    `kernels`: whether compiled ones compute what they can; on a GPU they never do. Set the number
    of torch threads before. Raises: a leaf of ModelFolderError, DeviceUnavailable,
        NoCommonRowCount, KernelsNotBuilt, KernelsNotLoaded, ValueError for an unknown dtype.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype!r} is not supported; use one of {sorted(_DTYPES)}")
    target = _checked_device(device)
    checked = folder if isinstance(folder, ModelFolder) else open_model_folder(folder)
    compiled = choose_kernels(kernels) if target.type == "cpu" else None
    weights = load_decoder_weights(
        checked.config, checked.weight_files, _DTYPES[dtype], target, compiled
    )
    return Decoder(checked.config, weights)


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


def _checked_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceUnavailable(name) from None
    if device.type not in ("cpu", "cuda"):
        raise DeviceUnavailable(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceUnavailable(name)
    return device
