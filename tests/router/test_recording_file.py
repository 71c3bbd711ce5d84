"""Recordings as files: read whole, cut off anywhere, damaged, or made up by somebody."""

import gzip
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from router.core_setup import CoreSetup
from router.events import CallerLeft, Event, TimeReached
from router.recording.entries import (
    ENDED,
    FORMAT,
    LastLine,
    LineMisfit,
    about,
    event_line,
    head_line,
    last_line,
    read_line,
)
from router.recording.file import RecordingUnreadable
from router.recording.testing import head_of, opened, packed, setup_of, values_of
from router.recording.values import Encoder
from scheduling.ids import RequestId

SETUP = setup_of(max_backlog_tokens=24, task_tag="router-0.1.")


def line_of(number: int, event: Event | None = None) -> bytes:
    event = event or CallerLeft(RequestId(f"r{number}"))
    return event_line(number, number / 7, Encoder().plain(event), [])


def edited(line: bytes, **fields: Any) -> bytes:
    return json.dumps(json.loads(line) | fields).encode() + b"\n"


def test_a_file_is_read_as_it_was_written() -> None:
    lines = [line_of(1), line_of(2, TimeReached()), last_line(ENDED)]
    recording = opened(packed(lines, SETUP))
    assert recording.head == head_of(SETUP)
    assert recording.head.setup.new_core().state.settings.max_backlog_tokens == 24
    first, second = recording.events()
    assert (first.number, first.now, first.event) == (1, 1 / 7, CallerLeft(RequestId("r1")))
    assert (second.number, second.event, second.outcome) == (2, TimeReached(), [])
    assert recording.end_reason == ENDED


def test_any_gzip_reads_it() -> None:
    lines = gzip.decompress(packed([line_of(1)], SETUP)).splitlines()
    assert json.loads(lines[0])["format"] == FORMAT
    assert json.loads(lines[1])["event"] == {"is": "CallerLeft", "request_id": "r1"}


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_file_cut_off_anywhere_gives_its_whole_lines(data: st.DataObject) -> None:
    num_events = 12
    content = packed(map(line_of, range(1, num_events + 1)), SETUP)
    cut = content[: data.draw(st.integers(0, len(content) - 1))]
    if len(cut) < 300:
        return  # perhaps not even the head
    recording = opened(cut)
    numbers = [handled.number for handled in recording.events()]
    assert numbers == list(range(1, len(numbers) + 1))
    assert recording.end_reason is None
    # What was flushed before the cut is there.
    assert len(numbers) >= (len(cut) - 300) // 100


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_file_is_told_of_or_reads_otherwise_and_nothing_worse(
    data: st.DataObject,
) -> None:
    content = bytearray(packed([*map(line_of, range(1, 5)), last_line(ENDED)], SETUP))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(RecordingUnreadable):
        list(opened(bytes(content)).events())


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(plain=st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["is", "n", "now", "event", "outcome", "end", "x"]), inner, max_size=5
    ),
))  # fmt: skip
def test_no_line_breaks_the_reader(plain: Any) -> None:
    try:
        read_line(json.dumps(plain).encode(), 1)
    except LineMisfit:
        return
    assert "end" in plain or plain["n"] == 1


@pytest.mark.parametrize(
    ("lines", "line", "says"),
    [
        ((b"{}\n",), 1, "this is no recording of a router"),
        ((b"no json\n",), 1, "this is no recording of a router"),
        ((edited(head_line(head_of(SETUP)), version=7),), 1, "version 7 of the format"),
        ((edited(head_line(head_of(SETUP)), policy=3),), 1, "policy is missing or no str"),
        ((head_line(head_of(SETUP)), line_of(1), line_of(3)), 3, "event 2 is due here and 3"),
        ((head_line(head_of(SETUP)), edited(line_of(1), now="soon")), 2, "now is missing or no"),
        ((head_line(head_of(SETUP)), edited(line_of(1), event={"is": "X"})), 2, "is none of"),
        ((head_line(head_of(SETUP)), b"[" * 100_000 + b"\n"), 2, "the line is no JSON"),
        ((head_line(head_of(SETUP)), last_line(ENDED), line_of(1)), 3, "more after the end"),
        ((head_line(head_of(SETUP)), b"1" * 3000), 2, "the line never ends"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    lines: tuple[bytes, ...], line: int, says: str
) -> None:
    with pytest.raises(RecordingUnreadable, match=says) as caught:
        list(opened(packed(lines), max_line_bytes=200_000 if b"[" in lines[-1] else 2000).events())
    assert caught.value.line == line
    assert "; " in str(caught.value).partition(says)[2]


def test_a_bomb_is_not_unpacked() -> None:
    content = packed([head_line(head_of(SETUP)), b"1" * 50_000_000])
    assert len(content) < 500_000
    with pytest.raises(RecordingUnreadable, match="the line never ends"):
        list(opened(content, max_line_bytes=1_000_000).events())


def test_something_else_is_no_recording() -> None:
    for content in (b"arrival_s,prompt_tokens\n", b"\x1f\x8b"):
        with pytest.raises(RecordingUnreadable):
            opened(content)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(event=values_of(Event))
def test_every_event_is_told_in_a_few_words(event: Event) -> None:
    assert about(event).startswith(type(event).__name__)


def test_a_policy_without_lending_stays_without() -> None:
    setup = CoreSetup("ecoserve", 0.2, 4, False, SETUP.settings)
    recording = opened(packed([], setup))
    assert recording.head.setup.new_policy() == setup.new_policy()
    assert setup.new_policy() != setup_of("ecoserve").new_policy()
    assert isinstance(read_line(last_line("full"), 1), LastLine)
