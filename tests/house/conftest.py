"""The checkout as the house tests see it."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def ignored_folders() -> frozenset[str]:
    """Names of folders that git leaves out, wherever they lie."""
    lines = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    return frozenset({".git"} | {line.rstrip("/") for line in lines if line.endswith("/")})


@pytest.fixture(scope="session")
def files(ignored_folders: frozenset[str]) -> list[Path]:
    """Every file of the checkout that git does not ignore, relative to it."""
    found: list[Path] = []
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in ignored_folders]
        found += [(Path(folder) / name).relative_to(ROOT) for name in names]
    return sorted(found)
