"""Memory that a machine or a container has."""

from pathlib import Path

import pytest

from runtime.memory import memory_bytes
from runtime.testing import machine_of

MACHINE = "MemFree: 1 kB\nMemTotal:       2048 kB\n"
SWAP = "SwapTotal:      1024 kB\n"


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
        # What may be swapped out.
        ({"proc/meminfo": MACHINE + SWAP}, 3 << 20),
        (
            {
                "proc/meminfo": MACHINE + SWAP,
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": "1048576\n",
            },
            2 << 20,
        ),
        (
            {
                "proc/meminfo": MACHINE + SWAP,
                "proc/self/cgroup": "0::/a\n",
                "sys/fs/cgroup/a/memory.max": "1048576\n",
                "sys/fs/cgroup/a/memory.swap.max": "4096\n",
            },
            (1 << 20) + 4096,
        ),
        (
            {
                "proc/meminfo": MACHINE + SWAP,
                "proc/self/cgroup": "4:memory:/box\n",
                "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "4096\n",
                "sys/fs/cgroup/memory/box/memory.memsw.limit_in_bytes": "8192\n",
            },
            8192,
        ),
        (
            {
                "proc/meminfo": MACHINE + SWAP,
                "proc/self/cgroup": "4:memory:/box\n",
                "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "4096\n",
            },
            (1 << 20) + 4096,
        ),
    ],
)
def test_the_tightest_of_all_limits_counts(
    tmp_path: Path, files: dict[str, str], expected: int | None
) -> None:
    assert memory_bytes(machine_of(tmp_path, files)) == expected


def test_a_group_may_have_any_name(tmp_path: Path) -> None:
    files = {"proc/meminfo": MACHINE, "sys/fs/cgroup/größe/memory.max": "4096\n"}
    root = machine_of(tmp_path, files)
    (root / "proc/self").mkdir()
    (root / "proc/self/cgroup").write_bytes("1:cpu:/\xff\n0::/größe\n".encode("latin-1"))
    assert memory_bytes(root) == 2 << 20
    (root / "proc/self/cgroup").write_text("0::/größe\n", encoding="utf-8")
    assert memory_bytes(root) == 4096
