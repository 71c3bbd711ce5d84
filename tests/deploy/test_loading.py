"""How far a start has come, by what workers write into their logs."""

import io
import json
from pathlib import Path
from typing import Literal

import pytest
import structlog

from deploy.local.loading import Loading, StartNews, last_loading, next_news_after
from runtime.clock import ManualClock
from runtime.logging import configure_logging
from worker.loading_log import LoadingLog


@pytest.fixture(params=["console", "json"])
def log_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """What a worker writes that has read half of its weights, in either form."""
    log_format: Literal["console", "json"] = request.param
    lines = io.StringIO()
    try:
        configure_logging("prefill", log_format=log_format, stream=lines)
        clock = ManualClock()
        progress = LoadingLog(clock)
        progress.phase("starting")
        progress.phase("loading weights")
        for num_read in range(50):
            progress.advanced(num_read, 100)
            clock.advance(0.125)
        structlog.get_logger().info("kernels_loaded", phase="another", percent=99)
    finally:
        structlog.reset_defaults()
    path = tmp_path / "prefill-0.log"
    path.write_text(lines.getvalue())
    return path


def test_the_last_line_of_a_worker_tells_how_far_it_is(log_path: Path) -> None:
    assert last_loading(log_path) == Loading("loading weights", 48)
    assert str(last_loading(log_path)) == "loading weights 48 %"


def test_a_long_part_makes_a_line_a_second(log_path: Path) -> None:
    lines = log_path.read_text().splitlines()
    assert sum("loading weights" in line for line in lines) == 1 + 6


def test_what_an_earlier_life_wrote_does_not_count(log_path: Path) -> None:
    assert last_loading(log_path, offset=log_path.stat().st_size) is None
    with log_path.open("a") as log:
        log.write("no line of a log: loading\n")
    assert last_loading(log_path) == Loading("loading weights", 48)


def test_no_log_tells_nothing(tmp_path: Path) -> None:
    assert last_loading(tmp_path / "none.log") is None


def test_people_and_programs_are_told_the_same() -> None:
    loading = {"prefill-0": Loading("loading weights", 45), "decode-0": Loading("starting")}
    news = StartNews(4.26, loading)
    assert str(news) == "after 4 s prefill-0: loading weights 45 %; decode-0: starting"
    assert json.loads(news.as_json()) == {
        "event": "loading",
        "elapsed_s": 4.3,
        "processes": {
            "prefill-0": {"phase": "loading weights", "percent": 45},
            "decode-0": {"phase": "starting"},
        },
    }


def test_news_come_every_two_seconds_at_first_and_not_often_in_an_hour() -> None:
    times = [0.0]
    while times[-1] < 3600:
        times.append(next_news_after(times[-1]))
    assert times[:5] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert len(times) < 40
