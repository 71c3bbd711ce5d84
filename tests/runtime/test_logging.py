"""What a log line holds, and what it never holds."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from runtime.logging import WITHHELD_FIELDS, configure_logging, get_logger


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_event_fields_and_the_names_of_the_process() -> None:
    stream = io.StringIO()
    configure_logging("decode", log_format="json", ids={"worker_id": "decode-1"}, stream=stream)
    get_logger(request_id="r1").info("blocks_delivered", num_blocks=12)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("+00:00")
    assert line == {
        "event": "blocks_delivered",
        "level": "info",
        "process": "decode",
        "worker_id": "decode-1",
        "request_id": "r1",
        "num_blocks": 12,
    }


def test_lines_below_the_level_are_not_written() -> None:
    stream = io.StringIO()
    configure_logging("router", log_format="json", level="warning", stream=stream)
    get_logger().info("unseen")
    get_logger().warning("seen")
    assert [line["event"] for line in lines(stream)] == ["seen"]


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_user_text_is_withheld(log_format: Any) -> None:
    stream = io.StringIO()
    configure_logging("router", log_format=log_format, stream=stream)
    get_logger().info("request_received", **dict.fromkeys(WITHHELD_FIELDS, "my diary"))
    assert "my diary" not in stream.getvalue()
    assert stream.getvalue().count("<withheld>") == len(WITHHELD_FIELDS)


def test_a_traceback_shows_no_local_variables() -> None:
    stream = io.StringIO()
    configure_logging("router", log_format="json", stream=stream)

    def fail(diary: str) -> None:
        raise RuntimeError("broken")

    try:
        fail("my diary".upper())
    except RuntimeError:
        get_logger().exception("process_failed")
    (line,) = lines(stream)
    assert "RuntimeError: broken" in line["exception"]
    assert "MY DIARY" not in stream.getvalue()


def test_lines_of_libraries_have_the_same_shape() -> None:
    stream = io.StringIO()
    configure_logging("router", log_format="json", level="debug", stream=stream)
    logging.getLogger("grpc").warning("channel %s", "lost")
    logging.getLogger("asyncio").debug("noise")
    (line,) = lines(stream)
    assert (line["event"], line["logger"], line["process"]) == ("channel lost", "grpc", "router")


def test_the_console_form_is_one_line_without_colours_when_not_a_terminal() -> None:
    stream = io.StringIO()
    configure_logging("router", stream=stream)
    get_logger().info("request_received", num_tokens=3)
    assert "request_received" in stream.getvalue()
    assert "num_tokens=3" in stream.getvalue()
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()
