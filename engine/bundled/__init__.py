"""The model that comes with the repository: where it lies and whether its files are whole.

Light on purpose: no torch, so that the router and the CLI may ask too. `python -m
engine.bundled.train` made it; model/README.md says how.
"""

import hashlib
from pathlib import Path

CHECKSUM_FILE = "SHA256SUMS"


class BundledModelDamaged(Exception):
    """A file of the bundled model is missing or differs from the one that was published."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(
            f"bundled model: {path}: {problem}; restore the folder with "
            "`git checkout -- engine/bundled/model`, or serve another model with --model"
        )
        self.path = path
        self.problem = problem


def bundled_model_path() -> Path:
    """The Hugging Face folder of the bundled model; does not check that it is whole."""
    return Path(__file__).resolve().parent / "model"


def verify_bundled_model() -> None:
    """Compare every file of the bundled model with its published SHA-256.

    Raises: BundledModelDamaged.
    """
    verify_checksums(bundled_model_path())


def verify_checksums(folder: Path) -> None:
    """Compare the files of a folder with its SHA256SUMS, which has the format of sha256sum.

    Raises: BundledModelDamaged.
    """
    sums = folder / CHECKSUM_FILE
    try:
        lines = sums.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BundledModelDamaged(sums, "cannot be read") from error
    if not lines:
        raise BundledModelDamaged(sums, "lists no file")
    for line in lines:
        expected, separator, name = line.partition("  ")
        if not separator or Path(name).name != name:
            raise BundledModelDamaged(sums, "has a line that is not a hash and a file name")
        path = folder / name
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise BundledModelDamaged(path, "cannot be read") from error
        if found != expected:
            raise BundledModelDamaged(path, "has other bytes than its SHA-256 says")
