"""The model of a round as a folder."""

from pathlib import Path

from engine.bundled import bundled_model_path
from engine.testing import make_random_model_folder

_WEIGHTS_SEED = 5


def model_folder(name: str, under: Path) -> Path:
    """The bundled model, or a tiny one of a family with the same random weights every time."""
    if name == "bundled":
        return bundled_model_path()
    folder = under / name
    if not folder.exists():
        make_random_model_folder(folder, name, _WEIGHTS_SEED)
    return folder
