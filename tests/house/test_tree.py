"""The root listing is the architecture diagram, and files stay small and well named."""

import ast
import re
from importlib.metadata import packages_distributions
from pathlib import Path

# A new folder at the root is a decision about the architecture: draw it in README.md as well.
ROOT_FOLDERS = {
    ".ci",
    "benchmarks",
    "cluster",
    "decode_worker",
    "deploy",
    "docs",
    "engine",
    "kvtransfer",
    "prefill_worker",
    "proto",
    "router",
    "runtime",
    "scheduling",
    "simulator",
    "tandemserve",
    "tests",
    "tools",
    "worker",
}
NOT_PACKAGES = {".ci", "benchmarks", "docs", "proto", "tests"}
BANNED_NAMES = {"utils", "util", "helpers", "common", "misc", "base", "types", "manager"}
CODE = {".py", ".proto", ".lua"}
TEXT = CODE | {".md", ".toml", ".txt", ".yaml", ".yml", ".html", ""}
MAX_LINES = 400
# May only shrink.
LONGER_FILES: set[str] = set()

_MACHINE_PATH = re.compile(r"/(home|root|Users|work|opt)/[a-z]")
_UNFINISHED = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X])\b|raise NotImplementedErro[r]")


def is_generated(path: Path) -> bool:
    """Written by protoc."""
    return "_pb2" in path.name


def test_root_folders_are_the_known_ones(files: list[Path]) -> None:
    folders = {path.parts[0] for path in files if len(path.parts) > 1}
    assert folders == ROOT_FOLDERS


def test_readme_names_every_folder(root: Path) -> None:
    readme = (root / "README.md").read_text("utf-8")
    missing = {name for name in ROOT_FOLDERS if f"`{name}/" not in readme}
    assert missing <= {".ci"}


def test_every_package_is_a_package_and_nothing_else_is(root: Path) -> None:
    packages = {path.parent.name for path in root.glob("*/__init__.py")}
    assert packages == ROOT_FOLDERS - NOT_PACKAGES


def test_no_file_has_a_name_that_says_nothing(files: list[Path]) -> None:
    named = [path for path in files if path.suffix in CODE]
    assert [path for path in named if path.stem.removeprefix("test_") in BANNED_NAMES] == []


def test_no_file_is_too_long_to_read(root: Path, files: list[Path]) -> None:
    written = [path for path in files if path.suffix in CODE and not is_generated(path)]
    long = {
        path.as_posix(): num_lines
        for path in written
        if (num_lines := (root / path).read_text("utf-8").count("\n")) > MAX_LINES
    }
    assert long.keys() == LONGER_FILES, long


def test_no_init_file_under_tests(files: list[Path]) -> None:
    assert [p for p in files if p.parts[0] == "tests" and p.name == "__init__.py"] == []


def test_folders_of_tests_mirror_the_packages(root: Path, files: list[Path]) -> None:
    folders = {path.parent.relative_to("tests") for path in files if path.parts[0] == "tests"}
    astray = {folder for folder in folders if not (root / folder).is_dir()}
    # What no single package can show: the checkout itself, and the cluster as a whole.
    assert astray <= {Path("house"), Path("acceptance"), Path("chaos")}


def test_files_of_tests_are_collected(files: list[Path]) -> None:
    tests = [p for p in files if p.parts[0] == "tests" and p.suffix == ".py"]
    assert [p for p in tests if p.name != "conftest.py" and not p.name.startswith("test_")] == []


def test_every_module_says_what_it_is(root: Path, files: list[Path]) -> None:
    modules = [
        path
        for path in files
        if path.suffix == ".py" and path.parts[0] != "tests" and not is_generated(path)
    ]
    silent = [p for p in modules if not ast.get_docstring(ast.parse((root / p).read_text("utf-8")))]
    assert silent == []


def test_no_root_name_belongs_to_another_distribution() -> None:
    owners = packages_distributions()
    taken = {name: owners[name] for name in ROOT_FOLDERS if name in owners}
    assert {name: set(by) for name, by in taken.items() if set(by) != {"tandemserve"}} == {}


def test_no_file_names_a_machine(root: Path, files: list[Path]) -> None:
    assert _lines_matching(_MACHINE_PATH, root, files) == []


def test_nothing_is_left_unfinished(root: Path, files: list[Path]) -> None:
    assert _lines_matching(_UNFINISHED, root, files) == []


def _lines_matching(pattern: re.Pattern[str], root: Path, files: list[Path]) -> list[str]:
    texts = [p for p in files if p.suffix in TEXT and not is_generated(p)]
    return [
        f"{path}:{number}: {line.strip()}"
        for path in texts
        for number, line in enumerate((root / path).read_text("utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
