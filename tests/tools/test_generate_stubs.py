from pathlib import Path

import pytest

from tools import generate_stubs as module
from tools.generate_stubs import StubsNotGenerated, generate_stubs, generated_files


def test_each_proto_file_gives_two_modules_and_their_types(tmp_path: Path) -> None:
    written = generate_stubs(tmp_path)
    num_sources = len(list(module.PROTO.rglob("*.proto")))
    assert len(written) == 4 * num_sources
    assert Path("tandemserve/internal/v1/worker_pb2_grpc.pyi") in written


def test_hand_written_files_are_not_taken_for_generated_ones(tmp_path: Path) -> None:
    package = tmp_path / "tandemserve"
    package.mkdir()
    (package / "wire.py").touch()
    (package / "wire_pb2.py").touch()
    assert generated_files(tmp_path) == [Path("tandemserve/wire_pb2.py")]


def test_a_missing_destination_is_reported_with_what_the_compiler_said(tmp_path: Path) -> None:
    with pytest.raises(StubsNotGenerated, match="make install"):
        generate_stubs(tmp_path / "not there")
