import stat
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from engine.native.choice import choose_kernels, load_or_do_without
from engine.native.library import KernelsNotBuilt, KernelsNotLoaded, find_compiler, load_kernels

COMPILER = find_compiler() or ""
needs_compiler = pytest.mark.skipif(not COMPILER, reason="no C compiler on this machine")


@pytest.fixture
def broken_compiler(tmp_path: Path) -> str:
    """It answers questions, and compiles nothing."""
    return script(tmp_path, 'case "$*" in *" -o "*) echo no >&2; exit 1;; esac; echo 1')


@pytest.fixture
def useless_compiler(tmp_path: Path) -> str:
    """What it writes cannot be loaded, as from a file system without execution."""
    body = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo no library > "$2"; shift; done; echo 1'
    return script(tmp_path, body)


def script(folder: Path, body: str) -> str:
    path = folder / "cc"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


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


@needs_compiler
def test_a_home_without_room_does_not_matter(tmp_path: Path) -> None:
    home = tmp_path / "kernels"
    # Where the disk is full, all that is known is that the compiler failed.
    body = f'case "$*" in *"{home}"*) exit 1;; esac; exec {COMPILER} "$@"'
    assert load_kernels(script(tmp_path, body), home).digest
    assert not list(home.iterdir())


@needs_compiler
def test_a_kept_library_that_is_damaged_does_not_matter(tmp_path: Path) -> None:
    digest = load_kernels(COMPILER, tmp_path).digest
    (library,) = tmp_path.iterdir()
    library.unlink()  # not overwritten: this process has it mapped
    library.write_text("half a libra")
    assert load_kernels(COMPILER, tmp_path).digest == digest


def test_a_compiler_that_fails_is_named_with_the_remedy(
    broken_compiler: str, tmp_path: Path
) -> None:
    with pytest.raises(KernelsNotBuilt, match=r"cc did not build .* no; .*--attention torch"):
        load_kernels(broken_compiler, tmp_path / "kernels")
    assert not list((tmp_path / "kernels").iterdir())


def test_a_library_that_cannot_be_loaded_is_an_error_with_the_remedy(
    useless_compiler: str, tmp_path: Path
) -> None:
    with pytest.raises(KernelsNotLoaded, match=r"noexec.*--attention torch"):
        load_kernels(useless_compiler, tmp_path / "kernels")


def test_without_being_asked_for_kernels_that_cannot_be_loaded_are_done_without(
    useless_compiler: str, tmp_path: Path
) -> None:
    with capture_logs() as lines:
        assert load_or_do_without(useless_compiler, tmp_path / "kernels") is None
    assert [line["event"] for line in lines] == ["kernels_not_loaded"]


def test_a_user_without_a_home_gets_kernels_all_the_same(
    monkeypatch: pytest.MonkeyPatch, broken_compiler: str
) -> None:
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(KernelsNotBuilt):  # and no RuntimeError before the compiler is asked
        load_kernels(broken_compiler)


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_who_asks_for_torch_gets_no_kernels() -> None:
    assert choose_kernels("torch") is None


def test_the_digest_follows_the_target_that_the_compiler_resolves(tmp_path: Path) -> None:
    for target in ("#define __AVX2__ 1", "#define __AVX512F__ 1"):
        answer = f'case "$*" in *-dM*) echo "{target}"; exit;; esac; '
        write = 'while [ $# -gt 0 ]; do [ "$1" = -o ] && echo > "$2"; shift; done; echo 1'
        with pytest.raises(KernelsNotLoaded):
            load_kernels(script(tmp_path, answer + write), tmp_path / "kernels")
    digests = {path.name for path in (tmp_path / "kernels").iterdir()}
    assert len(digests) == 2
