"""Cores that containers and affinity leave to a process."""

import os
from pathlib import Path

import pytest

from runtime.cores import available_cores, resolve_num_threads
from runtime.testing import machine_of


def test_without_limits_the_affinity_counts(tmp_path: Path) -> None:
    assert available_cores(tmp_path) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"},
        {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "100000 100000\n"},
        {
            "proc/self/cgroup": "3:memory:/\n4:cpu,cpuacct:/box\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
        },
    ],
)
def test_a_limit_of_the_group_or_one_above_it_counts(tmp_path: Path, files: dict[str, str]) -> None:
    assert available_cores(machine_of(tmp_path, files)) == 1


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"},
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "99900000 100000\n"},
        {
            "proc/self/cgroup": "4:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    ],
)
def test_no_limit_or_a_wide_one_changes_nothing(tmp_path: Path, files: dict[str, str]) -> None:
    assert available_cores(machine_of(tmp_path, files)) == len(os.sched_getaffinity(0))


def test_threads_are_as_asked_or_a_share_of_the_cores() -> None:
    assert resolve_num_threads(7, num_processes=3) == 7
    assert resolve_num_threads(None) == available_cores()
    assert resolve_num_threads(None, num_processes=10_000) == 1
