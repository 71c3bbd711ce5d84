"""A process takes as many descriptors as it may have."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import resource, sys
hard = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (min(64, hard), hard))
from runtime.descriptor_limit import raise_descriptor_limit
print(raise_descriptor_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def limits(hard: int) -> tuple[list[int], str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(hard)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *log, line = done.stdout.splitlines()
    return [int(word) for word in line.split()], "\n".join(log) + done.stderr


def test_the_limit_is_raised_to_what_the_system_allows() -> None:
    numbers, log = limits(hard=5000)
    assert numbers == [5000, 5000, 5000]
    assert "few_descriptors" not in log


def test_few_are_pointed_out_with_what_to_do() -> None:
    numbers, log = limits(hard=500)
    assert numbers == [500, 500, 500]
    assert "few_descriptors" in log
    assert "raise the hard limit" in log
