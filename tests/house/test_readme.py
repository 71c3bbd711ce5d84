"""What the README tells a newcomer to type works."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from tandemserve.testing import FakeInferenceServer, answer

ADDRESS = "127.0.0.1:7700"


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    return (root / "README.md").read_text("utf-8")


@pytest.fixture
def server() -> Iterator[FakeInferenceServer]:
    with FakeInferenceServer() as fake:
        yield fake


def test_the_readme_fits_on_one_screen_or_two(readme: str) -> None:
    assert readme.count("\n") <= 80


def test_python_example_prints_the_answer(readme: str, server: FakeInferenceServer) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert ADDRESS in example
    server.scripts.append(answer("a list of words"))
    printed = StringIO()
    with redirect_stdout(printed):
        exec(compile(example.replace(ADDRESS, server.target), "README.md", "exec"), {})
    assert printed.getvalue() == "a list of words"


def test_commands_that_talk_to_the_cluster_succeed(
    readme: str, server: FakeInferenceServer
) -> None:
    commands = re.findall(r"^\.venv/bin/tandem (.+)$", readme, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-m", "tandemserve.cli.main", *shlex.split(command, comments=True)],
            env={"TANDEM_TARGET": server.target},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert done.stdout
