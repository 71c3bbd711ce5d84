import stat
from pathlib import Path

import pytest

from engine.native.library import KernelsNotBuilt, find_compiler, load_kernels

COMPILER = find_compiler() or ""
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C compiler on this machine")


@needs_compiler
def test_kernels_are_compiled_once_and_found_again(tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    first = load_kernels(COMPILER, folder)
    (library,) = folder.iterdir()
    written_at = library.stat().st_mtime_ns
    again = load_kernels(COMPILER, folder)
    assert again.digest == first.digest
    assert first.digest in library.name
    assert library.stat().st_mtime_ns == written_at
    assert again.functions.tandem_attend is not None


@needs_compiler
def test_a_folder_that_others_can_write_into_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(stat.S_IRWXU | stat.S_IRWXG | stat.S_IRWXO)
    load_kernels(COMPILER, folder)
    assert not list(folder.iterdir())


@needs_compiler
def test_a_home_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert load_kernels(COMPILER, file / "kernels").digest


def test_a_compiler_that_fails_is_named_with_the_remedy(tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo 1 && exit 0\necho 'no' >&2\nexit 1\n"
    )
    broken.chmod(0o755)
    with pytest.raises(KernelsNotBuilt, match=r"cc did not build .* no; .*--attention torch"):
        load_kernels(str(broken), tmp_path / "kernels")
    assert not list((tmp_path / "kernels").iterdir())
