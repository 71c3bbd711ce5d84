"""A command whose standard streams are closed works all the same."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# A child that cannot write to its output fails.
_COMMAND = """
import subprocess, sys
from tandemserve.cli.streams import open_closed_streams
open_closed_streams()
assert not sys.stdin.read()
for stream in (sys.stdout, sys.stderr):
    stream.write("told")
    stream.flush()
subprocess.run(["sh", "-c", "read line; echo told && echo told >&2"], check=True)
"""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_read_nothing_and_drop_what_is_written(closed: str) -> None:
    shell = f'exec "$0" -c "$1" {closed}'
    ended = subprocess.run(
        ["sh", "-c", shell, sys.executable, _COMMAND],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        timeout=120.0,
        check=False,
    )
    assert ended.returncode == 0


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_the_command_runs_with_closed_streams(closed: str) -> None:
    shell = f'exec "$0" -P -m tandemserve.cli.main version {closed}'
    ended = subprocess.run(
        ["sh", "-c", shell, sys.executable], cwd=ROOT, timeout=120.0, check=False
    )
    assert ended.returncode == 0
