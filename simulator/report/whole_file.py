"""Files that are there as a whole or not at all."""

from pathlib import Path


def replace_file(path: Path, text: str) -> None:
    """Write UTF-8 text; the file keeps its old content if that fails. Raises: OSError."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        # A pipe or /dev/stdout: it must not give way to a file.
        path.write_text(text, encoding="utf-8")
        return
    beside = path.with_name(f"{path.name}.part")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
