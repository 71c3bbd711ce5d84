"""How far a simulation is, on a terminal and in a log."""

from io import StringIO

from runtime.clock import ManualClock
from simulator.progress import ProgressLine, brief


class Terminal(StringIO):
    """Says that somebody looks."""

    def isatty(self) -> bool:
        return True


def run(stream: StringIO, seconds: int, updates_per_s: int = 100) -> list[str]:
    """A run of 1,000 requests, at 60 times real time; returns what was written, in pieces."""
    clock = ManualClock()
    line = ProgressLine(stream, clock, "default", 1000)
    num_updates = seconds * updates_per_s
    for number in range(1, num_updates + 1):
        clock.advance(1 / updates_per_s)
        line.update(60 * clock.now(), 1000 * number // num_updates)
    line.close(60 * clock.now(), 1000)
    return stream.getvalue().replace("\r", "\n").splitlines()


def test_a_log_has_a_line_every_ten_seconds() -> None:
    lines = run(StringIO(), 35)
    # And one at the end.
    assert len(lines) == 4
    assert "1,000/1,000 requests (100%)" in lines[-1]
    assert "60x real time" in lines[0]


def test_a_short_run_says_nothing_in_a_log() -> None:
    assert run(StringIO(), 9) == []


def test_a_terminal_has_one_line_that_is_rewritten() -> None:
    stream = Terminal()
    pieces = run(stream, 10)
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().startswith("\r")
    assert stream.getvalue().endswith("\n")
    assert 20 <= len(pieces) <= 60


def test_the_time_that_is_left_follows_from_the_requests_that_are() -> None:
    clock, stream = ManualClock(), StringIO()
    line = ProgressLine(stream, clock, "default", 400)
    clock.advance(30.0)
    line.update(3600.0, 100)
    (told,) = stream.getvalue().splitlines()
    assert told == "default: 100/400 requests (25%), 1h00m simulated, 120x real time, 1m30s left"


def test_what_a_longer_line_left_is_wiped() -> None:
    clock, stream = ManualClock(), Terminal()
    line = ProgressLine(stream, clock, "default", 400)
    clock.advance(30.0)
    line.update(3600.0, 100)
    clock.advance(30.0)
    line.close(3600.0, 400)
    first, second = stream.getvalue().removeprefix("\r").split("\r")
    assert len(second.rstrip("\n")) >= len(first)


def test_durations_are_short() -> None:
    assert [brief(s) for s in (0.04, 61.2, 125, 7300)] == ["0.0s", "1m01s", "2m05s", "2h01m"]


def test_a_run_that_slows_down_is_still_told_of() -> None:
    clock, stream = ManualClock(), StringIO()
    line = ProgressLine(stream, clock, "default", 10)
    for _ in range(100_000):
        clock.advance(1e-5)
        line.update(1.0, 1)
    for _ in range(2000):
        clock.advance(0.1)
        line.update(2.0, 2)
    assert stream.getvalue().count("\n") >= 1
