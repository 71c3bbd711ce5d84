"""Trace files as the tests write them."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

WriteTrace = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteTrace:
    """Writes lines into a file of that name, compressed if it ends in .gz."""

    def write_lines(name: str, *lines: str) -> Path:
        path = tmp_path / name
        content = "".join(f"{line}\n" for line in lines).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write_lines
