"""Which line of a log is shown when its process has ended."""

from pathlib import Path

import pytest

from deploy.local.log_tail import last_meaningful_line

ROUTINE = "2026-01-01T00:00:00.000+00:00 [info     ] process_starting process=decode pid=1"
ROUTINE_JSON = '{"process": "decode", "event": "process_stopped", "level": "info"}'
REASON = "decode: the model folder has no config.json; give the folder that holds it"
TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 1, in <module>
    1 / 0
ZeroDivisionError: division by zero
"""


@pytest.fixture
def log_path(tmp_path: Path) -> Path:
    return tmp_path / "decode-0.log"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"{ROUTINE}\n{REASON}\n", REASON),
        (f"{ROUTINE}\n{REASON}\n{ROUTINE}\n{ROUTINE_JSON}\n\n", REASON),
        (f"{ROUTINE}\n{TRACEBACK}{ROUTINE}\n", "ZeroDivisionError: division by zero"),
        (f"{ROUTINE}\n", ROUTINE.replace("[info     ]", "[info ]")),
        ("", ""),
    ],
    ids=["one-line error", "routine after it", "traceback", "routine only", "empty"],
)
def test_the_line_that_says_why_is_found(log_path: Path, content: str, expected: str) -> None:
    log_path.write_text(content)
    assert last_meaningful_line(log_path) == expected


def test_an_earlier_life_is_not_quoted(log_path: Path) -> None:
    log_path.write_text(f"{REASON}\n")
    offset = log_path.stat().st_size
    with log_path.open("a") as log:
        log.write(f"{ROUTINE}\n")
    assert "process_starting" in last_meaningful_line(log_path, offset)


def test_a_long_line_is_cut_and_a_missing_log_is_empty(log_path: Path, tmp_path: Path) -> None:
    log_path.write_bytes(b"\xff" + b"x" * 500_000)
    assert 0 < len(last_meaningful_line(log_path)) <= 400
    assert last_meaningful_line(tmp_path / "absent.log") == ""
