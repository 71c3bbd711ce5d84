"""A Hugging Face model folder, read and checked before any weight is loaded.

Everything that is wrong with a folder is named here, at start (engine/model_folder_errors.py).
Nothing here imports torch: the router reads the same folder with the same code.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from engine.config_json import CONFIG_FILE, GenerationDefaults, read_model_config
from engine.json_file import read_file
from engine.model_config import ModelShape
from engine.model_folder_errors import ModelFileMissing, ModelFolderMissing
from engine.safetensors_header import checked_weight_files
from engine.tokenizer import TOKENIZER_FILE, TOKENIZER_HINT


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A checked folder. The files may still change under us; whoever reads them reports that."""

    path: Path
    # A ModelConfig where the engine computes the family itself.
    config: ModelShape
    generation: GenerationDefaults
    # Every shard, in the order of their names.
    weight_files: tuple[Path, ...]
    tokenizer_file: Path


def open_model_folder(path: str | Path, max_model_len: int | None = None) -> ModelFolder:
    """Read and check all of the folder but the tensors themselves and the tokenizer's content.

    `max_model_len`: no longer context will be asked for, in tokens.
    Raises: a leaf of ModelFolderError.
    """
    folder = Path(path)
    try:
        is_folder = folder.is_dir()
    except OSError as error:  # a name that is too long, a folder above it that is closed to us
        raise ModelFolderMissing(folder, f"cannot be read ({error.strerror})") from None
    if not is_folder:
        raise ModelFolderMissing(folder)
    config, generation = read_model_config(folder, max_model_len)
    tokenizer_file = folder / TOKENIZER_FILE
    if not tokenizer_file.is_file():
        raise ModelFileMissing(tokenizer_file, TOKENIZER_HINT)
    return ModelFolder(folder, config, generation, checked_weight_files(folder), tokenizer_file)


def model_fingerprint(path: str | Path, rope_choice: str = "") -> str:
    """Sixteen hex digits over the bytes of config.json and tokenizer.json, not of the weights.

    And over what a shortened context chose (ModelShape), if it did.
    A router and a worker whose fingerprints differ may not serve one request together.
    Raises: ModelFolderMissing, ModelFileMissing.
    """
    digest = hashlib.sha256()
    for name in (CONFIG_FILE, TOKENIZER_FILE):
        content = read_file(Path(path) / name)
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    digest.update(rope_choice.encode())
    return digest.hexdigest()[:16]
