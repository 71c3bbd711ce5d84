"""What the package exports, and what importing it costs."""

import subprocess
import sys
import tomllib
from pathlib import Path

import tandemserve
from tandemserve import admin_results, options, results

ROOT = Path(__file__).parents[2]


def imported_by(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return {name.split(".")[0] for name in output.split()}


def test_all_is_sorted_complete_and_importable() -> None:
    assert tandemserve.__all__ == sorted(tandemserve.__all__)
    for name in tandemserve.__all__:
        assert getattr(tandemserve, name) is not None
    for module in (admin_results, options, results):
        assert set(module.__all__) <= set(tandemserve.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(tandemserve, "Cleint")


def test_the_package_is_typed_and_versioned() -> None:
    assert (ROOT / "tandemserve" / "py.typed").is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == tandemserve.__version__


def test_importing_the_package_does_not_import_grpc() -> None:
    assert not imported_by("import tandemserve") & {"grpc", "google", "typer", "rich"}


def test_importing_the_cli_does_not_import_grpc() -> None:
    assert not imported_by("import tandemserve.cli.main") & {"grpc", "google"}


def test_the_clients_need_none_of_the_server_packages() -> None:
    statement = "from tandemserve import *; import tandemserve.cli.main, tandemserve.testing"
    servers = {
        "cluster", "decode_worker", "deploy", "engine", "kvtransfer", "numpy", "prefill_worker",
        "redis", "router", "runtime", "scheduling", "simulator", "torch", "worker", "yaml",
    }  # fmt: skip
    assert not imported_by(statement) & servers
