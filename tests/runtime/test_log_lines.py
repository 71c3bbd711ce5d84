"""A log that cannot be written costs lines and nothing else."""

import errno
import io
import json
import logging
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from runtime.log_lines import LineWriter
from runtime.logging import configure_logging, get_logger


@pytest.fixture
def configured() -> Iterator[Any]:
    """`configure_logging` that is undone at the end."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield configure_logging
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_lines_of_both_kinds_of_loggers_survive_a_full_disk(
    configured: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full, (tmp_path / "log").open("w") as disk:
        with pytest.raises(OSError, match="No space left"):
            os.write(full.fileno(), b"x")
        configured("router", log_format="json", stream=full)
        for number in range(3):
            get_logger().info("lost", number=number)
        logging.getLogger("grpc").warning("lost as well")
        # There is room again.
        os.dup2(disk.fileno(), full.fileno())
        get_logger().info("written")
    confession, line = (tmp_path / "log").read_text().splitlines()
    assert confession == "(4 log lines could not be written)"
    assert json.loads(line)["event"] == "written"
    assert capfd.readouterr() == ("", "")


def test_a_closed_pipe_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        lines = LineWriter(stream)
        assert lines.write("x\n") == 2
        assert lines.num_lost == 1
    lines.write("the stream is closed by now\n")
    assert lines.num_lost == 2


def test_a_full_disk_costs_no_memory() -> None:
    with open("/dev/full", "w") as full:
        lines = LineWriter(full)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(20_000):
            lines.write("x" * 1024 + "\n")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 8 * 1024
    assert lines.num_lost == 20_000


def test_a_line_is_written_whole_where_the_pipe_takes_it_in_parts() -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb") as source, os.fdopen(writer, "w") as stream:
        LineWriter(stream).write("ä" * 20_000 + "\ud800\n")
        stream.close()
        assert source.read() == ("ä" * 20_000).encode() + b"\\ud800\n"


def test_a_stream_in_memory_may_fail_too() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "full")

    lines = LineWriter(Broken())
    lines.write("x\n")
    assert lines.num_lost == 1
    good = io.StringIO()
    LineWriter(good).write("x\n")
    assert good.getvalue() == "x\n"
