"""Import rules that import-linter cannot express, and that its own rules cover every package."""

import ast
import configparser
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

SERVERS = {"runtime", "cluster", "engine", "kvtransfer", "worker", "router", "simulator"} | {
    "prefill_worker",
    "decode_worker",
    "scheduling",
}
# They start others, and nobody starts by importing them.
STARTERS = {"deploy", "benchmarks", "tests", "tools"}
CONTRACTS = configparser.ConfigParser()
CONTRACTS.read(Path(__file__).resolve().parents[2] / ".importlinter", "utf-8")


@cache
def imported_modules(source: Path) -> list[str]:
    """Full names of what a file imports, `from a import b` as a.b."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def our_stubs(source: Path, suffix: str) -> set[str]:
    """Which of our generated modules with that suffix a file imports, without the suffix."""
    return {
        name.removesuffix(suffix)
        for name in imported_modules(source)
        if name.startswith("tandemserve.") and name.endswith(suffix)
    }


def listed(contract: str, option: str) -> set[str]:
    """The entries of one multi-line option of .importlinter."""
    return set(CONTRACTS[contract][option].split())


def modules_of(root: Path, files: list[Path]) -> list[Path]:
    """Files of the servers."""
    return [root / p for p in files if p.suffix == ".py" and p.parts[0] in SERVERS]


def test_messages_stay_in_wire_modules_and_beside_the_stubs_they_belong_to(
    root: Path, files: list[Path]
) -> None:
    strays = [
        path.relative_to(root).as_posix()
        for path in modules_of(root, files)
        if path.name != "wire.py"
        and "wire" not in path.parent.parts
        and not our_stubs(path, "_pb2") <= our_stubs(path, "_pb2_grpc")
    ]
    assert strays == []


def test_every_package_is_under_the_import_rules(root: Path) -> None:
    packages = {path.parent.name for path in root.glob("*/__init__.py")}
    assert listed("importlinter", "root_packages") == packages


def test_every_core_is_held_to_be_pure(files: list[Path]) -> None:
    cores = {".".join(path.with_suffix("").parts) for path in files if path.name == "core.py"}
    assert cores <= listed("importlinter:contract:cores", "source_modules")


def test_nobody_imports_what_only_starts_others(root: Path, files: list[Path]) -> None:
    importers = [
        (path.as_posix(), name)
        for path in files
        if path.suffix == ".py" and path.parts[0] != "tests"
        for name in imported_modules(root / path)
        if name.split(".")[0] in STARTERS - {path.parts[0]}
    ]
    assert importers == []


def test_a_router_starts_without_torch(root: Path) -> None:
    names = "router.serve, router.__main__"
    code = f"import json, sys, {names}; json.dump(sorted(sys.modules), sys.stdout)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    loaded = set(json.loads(done.stdout))
    assert "grpc" in loaded
    assert loaded.isdisjoint({"torch", "safetensors", "transformers"})
