"""What the core wants done is done, and what that leads to is told to the core."""

from router.dispatcher import Dispatcher
from router.events import (
    Action,
    Event,
    ReaderFellBehind,
    ReleaseHolding,
    ReportsArrived,
    SendCommand,
)
from router.ledger_client import LedgerAction
from router.streams import AcceptedInfo, RequestStream, StreamBook
from router.testing import (
    DECODE,
    CoreUnderTest,
    assert_empty,
    of_type,
    spec_of,
    through_prefill,
    tokens,
)
from runtime.clock import ManualClock
from runtime.telemetry import start_telemetry
from scheduling.errors import ReaderTooSlow
from scheduling.ids import RequestId, WorkerId
from scheduling.messages import CancelTask, Report, TaskReleased

ID = RequestId("r")
# Room for four tokens; the one that makes it too much does not count yet.
MAX_BYTES, NUM_TOKENS = 3000, 6


async def test_a_request_whose_reader_stands_still_is_ended_and_its_blocks_are_freed() -> None:
    core = CoreUnderTest()
    core.ask(spec_of(max_tokens=20))
    task = through_prefill(core)
    streams = StreamBook(max_stream_bytes=MAX_BYTES)
    stream = RequestStream(ID, b"f", 1, AcceptedInfo("model", 6, 5, "standard"))
    streams.open(stream)
    stream.take_over()
    metrics = start_telemetry("router", "router-0", version="1").metrics
    dispatcher = Dispatcher(core.core, streams, metrics, ManualClock())
    told: list[tuple[Event, list[Action] | Exception]] = []
    asked: list[LedgerAction] = []
    dispatcher.on_event = lambda now, event, result: told.append((event, result))
    dispatcher.ask_ledger = asked.append

    def report(report: Report) -> None:
        dispatcher.apply(ReportsArrived(WorkerId(DECODE), (report,), None))

    for number in range(1, NUM_TOKENS):
        report(tokens(task, number, 5))
        assert not stream.is_over
    report(tokens(task, NUM_TOKENS, 5))
    assert stream.failure is not None
    assert isinstance(stream.failure.error, ReaderTooSlow)
    assert stream.failure.gpu_work_spent
    assert stream.num_bytes == 0, "its tokens do not wait for who does not come"
    assert streams.overfull == []
    event, actions = told[-1]
    assert event == ReaderFellBehind(ID, MAX_BYTES)
    assert isinstance(actions, list)
    (command,) = of_type(actions, SendCommand)
    assert (command.worker_id, type(command.command)) == (DECODE, CancelTask)
    report(tokens(task, NUM_TOKENS + 1, 5))  # it had been sent before the worker heard
    report(TaskReleased(task))
    assert of_type(asked, ReleaseHolding)
    assert_empty(core)
    assert core.core.state.counters.num_cancelled == 1
