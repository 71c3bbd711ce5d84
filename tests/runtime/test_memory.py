"""Memory that a machine or a container has."""

from pathlib import Path

import pytest

from runtime.memory import memory_bytes
from runtime.testing import machine_of

MACHINE = "MemFree: 1 kB\nMemTotal:       2048 kB\n"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": MACHINE}, 2 << 20),
        (
            {
                "proc/meminfo": MACHINE,
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "1048576\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
            },
            1 << 20,
        ),
        (
            {
                "proc/meminfo": MACHINE,
                "proc/self/cgroup": "4:memory:/box\n",
                "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "4096\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            4096,
        ),
    ],
)
def test_the_tightest_of_all_limits_counts(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    assert memory_bytes(machine_of(tmp_path, files)) == expected
