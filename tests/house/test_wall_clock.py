"""Setting the wall clock forward or back changes nothing: nobody decides anything by it."""

import ast
import os
import time
from collections.abc import Iterator
from pathlib import Path

from cluster.process_identity import is_known_dead, this_process

# What each reads it for; none of these is compared with another reading to learn a duration.
READERS = {
    "runtime/logging.py": "the time in a log line, for people",
    "worker/shell.py": "when a worker started, for people",
    "worker/testing.py": "when a worker started, for people",
    "router/serve.py": "when a router started, for people",
    "benchmarks/router_load/testing.py": "when a worker started, for people",
    "cluster/memory_membership.py": "incarnations; never below the last one",
    "kvtransfer/probe.py": "a name that no other probe has",
    "engine/chat_template.py": "today's date, which templates may ask for",
}
# Modules and what of them reads the wall clock.
BANNED = {
    "time": {"time", "time_ns", "localtime", "gmtime", "ctime", "clock_gettime"},
    "datetime": {"now", "utcnow", "today"},
    "date": {"today"},
}
CLOCK = Path("runtime/clock.py")


def product_code(root: Path, files: list[Path]) -> Iterator[tuple[Path, ast.Module]]:
    for path in files:
        if path.suffix == ".py" and path.parts[0] not in ("tests", "tools") and path != CLOCK:
            yield path, ast.parse((root / path).read_text("utf-8"))


def test_only_the_clock_module_reads_the_wall_clock(root: Path, files: list[Path]) -> None:
    found = [
        f"{path}:{node.lineno}"
        for path, tree in product_code(root, files)
        if path.parts[0] != "benchmarks"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.attr in BANNED.get(node.value.id, ())
    ]
    assert found == []


def test_who_asks_for_the_wall_time_is_known_with_the_reason(root: Path, files: list[Path]) -> None:
    readers = {
        path.as_posix()
        for path, tree in product_code(root, files)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        and node.module == "runtime.clock"
        and any(name.name == "wall_time_ns" for name in node.names)
    }
    assert readers <= READERS.keys(), "say what it is read for, or take the monotonic clock"


def test_who_a_process_is_does_not_depend_on_the_wall_clock() -> None:
    """Since boot, not since the epoch: else a live process would seem dead after a jump."""
    identity = this_process()
    assert not is_known_dead(identity)
    if Path("/proc/self/stat").exists():
        since_boot_s = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert 0 < identity.created_at_s <= since_boot_s
        assert identity.pid == os.getpid()
