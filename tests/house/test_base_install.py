"""`pip install tandemserve` brings the SDK and the CLI, and nothing that serves models."""

import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tandemserve.version import VERSION

# Runs first in a fresh interpreter: what the base install lacks cannot be imported.
_HIDE = """
import sys

HIDDEN = frozenset({hidden!r})

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hide())
"""
_IMPORT_ALL = """
import importlib, pkgutil
import tandemserve

for module in pkgutil.walk_packages(tandemserve.__path__, "tandemserve."):
    importlib.import_module(module.name)
for name in tandemserve.__all__:
    getattr(tandemserve, name)
"""
_RUN_CLI = """
from tandemserve.cli.main import main

sys.argv = ["tandem", *{arguments!r}]
sys.exit(main())
"""


def distributions_of_base() -> set[str]:
    """Tandem and everything that its requirements without extras bring along."""
    wanted, found = ["tandemserve"], set[str]()
    while wanted:
        name = canonicalize_name(wanted.pop())
        if name in found:
            continue
        try:
            lines = requires(name) or []
        except PackageNotFoundError:
            continue  # for another platform or Python
        found.add(name)
        needed = [Requirement(line) for line in lines]
        wanted += [r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def hidden(root: Path) -> list[str]:
    """Import names that a base install does not have."""
    base = distributions_of_base()
    foreign = {
        name
        for name, owners in packages_distributions().items()
        if not base & {canonicalize_name(owner) for owner in owners}
    }
    servers = {path.parent.name for path in root.glob("*/__init__.py")} - {"tandemserve"}
    return sorted(foreign | servers)


def test_base_install_needs_neither_torch_nor_redis() -> None:
    base = distributions_of_base()
    assert {"grpcio", "protobuf", "typer"} <= base
    assert base.isdisjoint({"torch", "numpy", "redis", "structlog", "tokenizers"})


def test_sdk_imports_with_only_its_own_requirements(hidden: list[str]) -> None:
    assert {"torch", "redis", "structlog", "router"} <= set(hidden)
    done = _run(_HIDE.format(hidden=hidden) + _IMPORT_ALL)
    assert (done.returncode, done.stderr) == (0, "")


def test_cli_says_its_version_with_only_its_own_requirements(hidden: list[str]) -> None:
    done = _run(_HIDE.format(hidden=hidden) + _RUN_CLI.format(arguments=["version"]))
    assert (done.returncode, done.stderr) == (0, "")
    assert VERSION in done.stdout


def test_cli_without_the_servers_says_where_to_get_them(hidden: list[str]) -> None:
    done = _run(_HIDE.format(hidden=hidden) + _RUN_CLI.format(arguments=["up"]))
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "checkout" in done.stderr


def test_wheel_holds_the_sdk_only(root: Path, tmp_path: Path) -> None:
    builder = WheelBuilder(str(root))
    (wheel,) = builder.build(directory=str(tmp_path), versions=["standard"])
    names = zipfile.ZipFile(wheel).namelist()

    info = f"tandemserve-{VERSION}.dist-info"
    assert {name.split("/")[0] for name in names} == {"tandemserve", info}
    assert "tandemserve/py.typed" in names
    assert "tandemserve/api/v1/inference_pb2.pyi" in names
    assert f"{info}/licenses/LICENSE" in names


def test_version_of_package_and_code_agree(root: Path) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == VERSION


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
