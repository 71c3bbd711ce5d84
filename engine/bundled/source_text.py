"""Obtains the text the model is trained on: the reST sources of Debian's python3.11-doc package."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "python3.11-doc"
_DOWNLOAD_TIMEOUT_S = 300.0
_SUFFIXES = (".rst.txt", ".rst")


class TextUnavailable(Exception):
    """The training text could not be downloaded or unpacked, or holds no reST file."""

    def __init__(self, problem: str) -> None:
        super().__init__(
            f"{problem}; run `apt-get update`, or unpack the package {PACKAGE} yourself "
            "(dpkg -x) and pass its folder with --text"
        )
        self.problem = problem


@dataclass(frozen=True, slots=True)
class SourceText:
    """The reST files by path without suffix, and the licence that travels with what they teach."""

    source_by_path: dict[str, str]
    # None when the folder given holds no copyright file of the package.
    licence: str | None


def download(scratch: Path) -> Path:
    """Fetch the package with apt and unpack it under `scratch`; nothing is installed.

    Raises: TextUnavailable.
    """
    _run(["apt-get", "download", PACKAGE], scratch)
    archives = sorted(scratch.glob(f"{PACKAGE}_*.deb"))
    if not archives:
        raise TextUnavailable(f"apt-get download left no {PACKAGE} archive")
    unpacked = scratch / "unpacked"
    _run(["dpkg", "-x", str(archives[-1]), str(unpacked)], scratch)
    return unpacked


def read(folder: Path) -> SourceText:
    """Read every reST file below `folder`, which may be the unpacked package or any other.

    Raises: TextUnavailable.
    """
    sources = sorted(folder.glob("**/_sources"))
    root = sources[0] if sources else folder
    source_by_path: dict[str, str] = {}
    for path in sorted(root.rglob("*")):
        suffix = next((each for each in _SUFFIXES if path.name.endswith(each)), None)
        if suffix is not None and path.is_file():
            name = path.relative_to(root).as_posix().removesuffix(suffix)
            source_by_path[name] = path.read_text(encoding="utf-8", errors="replace")
    if not source_by_path:
        raise TextUnavailable(f"no .rst or .rst.txt file below {folder}")
    licences = sorted(folder.glob(f"**/{PACKAGE}/copyright"))
    return SourceText(source_by_path, licences[0].read_text("utf-8") if licences else None)


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TextUnavailable(f"{command[0]} did not run: {error}") from error
    if done.returncode != 0:
        raise TextUnavailable(f"{command[0]} failed: {done.stderr.strip()[-300:]}")
