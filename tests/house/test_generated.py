"""What machines wrote agrees with what people wrote, and the wire contract breaks no peer."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.generate_docs import DOCS, stale_pages
from tools.generate_stubs import generate_stubs, generated_files

BUF = Path(sys.executable).parent / "buf"


@pytest.fixture(scope="module")
def fresh_stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stubs")
    generate_stubs(folder)
    return folder


def test_stubs_are_those_of_the_proto_files(root: Path, fresh_stubs: Path) -> None:
    assert generated_files(root) == generated_files(fresh_stubs), "run `make proto`"
    stale = [
        path
        for path in generated_files(root)
        if (root / path).read_bytes() != (fresh_stubs / path).read_bytes()
    ]
    assert stale == [], "run `make proto`"


def test_generated_parts_of_the_docs_are_fresh() -> None:
    assert sorted(stale_pages(DOCS)) == [], "run `make docs`"


def test_proto_files_keep_the_style_of_buf(root: Path) -> None:
    assert _buf(root, "lint") == (0, "")


def test_proto_files_break_no_older_peer(root: Path) -> None:
    done = _buf(root, "breaking", "--against", "baseline.binpb")
    assert done == (0, ""), "keep the old fields, or accept the break with `make baseline`"


def test_a_breaking_change_would_be_noticed(root: Path, tmp_path: Path) -> None:
    proto = tmp_path / "proto"
    for path in (root / "proto").rglob("*"):
        if path.is_file():
            copy = proto / path.relative_to(root / "proto")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    worker = proto / "tandemserve/internal/v1/worker.proto"
    worker.write_text(worker.read_text("utf-8").replace("string task_id = 1", "bytes task_id = 1"))

    exit_code, said = _buf(tmp_path, "breaking", "--against", "baseline.binpb")

    assert exit_code != 0
    assert "task_id" in said


def _buf(folder: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [BUF, *arguments],
        cwd=folder / "proto",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr
