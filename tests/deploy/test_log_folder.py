"""Where logs cannot be written, nothing is started."""

from pathlib import Path

import pytest

from deploy.local.errors import LogFolderUnusable
from deploy.local.launcher import main
from deploy.local.log_folder import make_log_folder


def test_a_folder_is_made_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    make_log_folder(folder)
    make_log_folder(folder)
    assert list(folder.iterdir()) == []


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    file.touch()
    for path in (file, file / "below"):
        with pytest.raises(LogFolderUnusable, match="is a file, or lies below one; name a folder"):
            make_log_folder(path)


def test_a_folder_of_the_kernel_takes_no_files() -> None:
    for path in (Path("/proc"), Path("/proc/foo")):
        with pytest.raises(LogFolderUnusable, match=f"--log-dir {path} takes no files"):
            make_log_folder(path)


def test_up_says_so_in_one_line(
    capsys: pytest.CaptureFixture[str], model_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "README.md"
    file.touch()
    for path in (file, Path("/proc/foo")):
        code = main(["up", "--model", str(model_folder), "--port", "0", "--log-dir", str(path)])
        out, err = capsys.readouterr()
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(f"error: --log-dir {path} ")
