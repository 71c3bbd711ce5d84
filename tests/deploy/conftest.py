"""A launcher that ends with its test, and a cluster small enough to start soon."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.local.testing import LauncherProcess
from engine.testing import make_random_model_folder


@pytest.fixture
def launch() -> Iterator[Callable[..., LauncherProcess]]:
    """Start the launcher with these arguments; it and its children end with the test."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("TANDEM_")}
    launched: list[LauncherProcess] = []

    def start(*arguments: str) -> LauncherProcess:
        launched.append(LauncherProcess(arguments, environ))
        return launched[-1]

    yield start
    for one in launched:
        one.close()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_random_model_folder(folder)
    return folder


@pytest.fixture
def small_cluster(model_folder: Path, tmp_path: Path) -> tuple[str, ...]:
    """Arguments for one worker of each role with few blocks."""
    return (
        *("--model", str(model_folder), "--port", "0", "--decode", "1"),
        *("--num-blocks", "64", "--log-dir", str(tmp_path / "logs")),
    )
