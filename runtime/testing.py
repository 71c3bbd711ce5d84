"""For tests of any package: reads what a process logged, ends processes."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from runtime.logging import configure_logging

# SIGKILL cannot be refused; the bound is for a process stuck inside the kernel.
_END_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class CapturedLog:
    """The log lines of a test so far."""

    stream: io.StringIO = field(default_factory=io.StringIO)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """One dictionary a line."""
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    @property
    def events(self) -> list[str]:
        """The event names, in order."""
        return [line["event"] for line in self.lines]


async def end_now(process: asyncio.subprocess.Process) -> None:
    """Kill a process, should it still run, and read what it leaves behind."""
    if process.returncode is None:
        process.kill()
    async with asyncio.timeout(_END_TIMEOUT_S):
        await process.communicate()


@contextmanager
def captured_log(level: str = "info") -> Iterator[CapturedLog]:
    """Log to memory for the length of the block, and leave logging as it was."""
    root = logging.getLogger()
    handlers, root_level = root.handlers, root.level
    configuration = structlog.get_config()
    captured = CapturedLog()
    configure_logging("test", log_format="json", level=level, stream=captured.stream)
    try:
        yield captured
    finally:
        root.handlers = handlers
        root.setLevel(root_level)
        structlog.configure(**configuration)


def machine_of(root: Path, files: Mapping[str, str]) -> Path:
    """A folder with these files, such as "proc/meminfo", by which a process knows its machine."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
