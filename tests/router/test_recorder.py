"""The recorder's thread: everything is written, and nothing that goes wrong with it is felt."""

import stat
from pathlib import Path

import pytest
import structlog

from router.events import CallerLeft, RequestArrived, SendCommand, TimeReached, WorkerConnected
from router.recorder import Recorder
from router.recording.entries import ENDED, FULL, TOO_SLOW
from router.recording.file import Recording
from router.recording.testing import FullDisk, SlowDisk, head_of, opened, setup_of
from router.testing import hello_of, spec_of
from scheduling.errors import QueueFull
from scheduling.ids import RequestId, TaskId, WorkerId
from scheduling.messages import CancelTask
from scheduling.prefix_chain import PromptPrefix

PATIENCE_S = 60.0
MIB = 2**20
HEAD = head_of(setup_of())


def note_many(recorder: Recorder, num_events: int) -> None:
    for number in range(num_events):
        recorder.note(float(number), CallerLeft(RequestId(f"r{number:09}")), [])


def test_what_is_noted_is_in_the_file_in_order(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "router-0-1.jsonl.gz"
    recorder = Recorder(path, HEAD, MIB)
    recorder.start()
    cancel = SendCommand(WorkerId("w"), CancelTask(TaskId("t"), "why"))
    recorder.note(0.25, CallerLeft(RequestId("r")), [cancel])
    recorder.note(0.5, TimeReached(), QueueFull("full; retry"))
    recorder.note(0.75, TimeReached(), ZeroDivisionError("secret"))
    assert recorder.close(PATIENCE_S)
    with path.open("rb") as file:
        recording = Recording(path, file)
        left, refused, failed = recording.events()
    assert recording.end_reason == ENDED
    assert left.now == 0.25
    assert left.outcome[0]["command"] == {"is": "CancelTask", "task_id": "t", "reason": "why"}
    assert refused.outcome == {"refused": "QueueFull", "message": "full; retry"}
    assert failed.outcome == {"failed": "ZeroDivisionError"}
    # What callers wrote is for nobody else to read.
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_salted_prompt_is_told_with_names_of_blocks_that_nobody_has_asked_for(
    tmp_path: Path,
) -> None:
    # It waits in a queue when it is written, and nobody has looked yet who has its beginning.
    path, prompt = tmp_path / "r.jsonl.gz", tuple(range(40))
    prefix = PromptPrefix(prompt, "salt")
    spec = spec_of(num_prompt=40, cache_salt="salt", prefix=prefix)
    recorder = Recorder(path, HEAD, MIB)
    recorder.start()
    recorder.note(0.25, WorkerConnected(hello_of("decode-0", 8, block_size=8)), [])
    recorder.note(0.5, RequestArrived(spec), [])
    assert recorder.close(PATIENCE_S)
    with path.open("rb") as file:
        _, arrived = Recording(path, file).events()
    assert isinstance(arrived.event, RequestArrived)
    assert arrived.event.spec.prefix is not None
    names = PromptPrefix(prompt, "salt").keys(8)
    assert arrived.event.spec.prefix.known_keys == {8: names}


def test_a_recording_ends_at_its_size_with_one_log_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl.gz"
    with structlog.testing.capture_logs() as lines:
        recorder = Recorder(path, HEAD, 100_000, 10_000_000)
        recorder.start()
        note_many(recorder, 200_000)
        assert recorder.close(PATIENCE_S)
    recording = opened(path.read_bytes())
    num_events = len(list(recording.events()))
    assert recording.end_reason == FULL
    assert 0 < num_events < 200_000
    assert 100_000 <= path.stat().st_size < 300_000
    assert [line["event"] for line in lines if line["log_level"] == "error"] == [
        "recording_stopped"
    ]


@pytest.mark.parametrize("max_bytes", [0, 5, 2000])
def test_a_full_disk_ends_the_recording_with_one_log_line(max_bytes: int) -> None:
    disk = FullDisk(max_bytes)
    with structlog.testing.capture_logs() as lines:
        recorder = Recorder(Path("r.gz"), HEAD, MIB, 10_000_000, lambda path: disk)
        recorder.start()
        note_many(recorder, 100_000)
        assert recorder.close(PATIENCE_S)
        note_many(recorder, 1)
    stopped = [line for line in lines if line["log_level"] == "error"]
    assert [line["event"] for line in stopped] == ["recording_stopped"]
    assert "No space left on device" in stopped[0]["problem"]


def test_a_folder_that_cannot_be_made_ends_it_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with structlog.testing.capture_logs() as lines:
        recorder = Recorder(tmp_path / "file" / "r.gz", HEAD, MIB)
        recorder.start()
        assert recorder.close(PATIENCE_S)
    assert [line["event"] for line in lines] == ["recording_stopped"]


def test_an_older_recording_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "r.gz"
    path.write_bytes(b"older")
    recorder = Recorder(path, HEAD, MIB)
    recorder.start()
    assert recorder.close(PATIENCE_S)
    assert path.read_bytes() == b"older"


def test_nobody_waits_for_a_disk_that_hangs() -> None:
    disk = SlowDisk()
    with structlog.testing.capture_logs() as lines:
        recorder = Recorder(Path("r.gz"), HEAD, MIB, 100, lambda path: disk)
        recorder.start()
        assert disk.is_written_to.wait(PATIENCE_S)
        note_many(recorder, 150)
        assert [line["event"] for line in lines if line["log_level"] == "error"] == [
            "recording_stopped"
        ]
        assert not recorder.close(0.01)
        disk.may_write.set()
        assert recorder.close(PATIENCE_S)
    recording = opened(disk.content)
    assert len(list(recording.events())) == 100
    assert recording.end_reason == TOO_SLOW


def test_what_cannot_be_encoded_is_a_logged_defect_and_no_more(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as lines:
        recorder = Recorder(tmp_path / "r.gz", HEAD, MIB)
        recorder.start()
        recorder.note(0.0, {"no": "event"}, [])  # type: ignore[arg-type]  # a defect
        assert recorder.close(PATIENCE_S)
    assert [line["event"] for line in lines] == ["recording_started", "recording_failed"]
