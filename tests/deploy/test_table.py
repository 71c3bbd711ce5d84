"""The table of the demo: one row an answer, every figure where it belongs."""

import io

from rich.console import Console

from deploy.local.conversation import Outcome
from deploy.local.questions import Question
from deploy.local.table import columns_of, print_outcomes
from tandemserve import Finished, FinishReason, Timings, Usage

TIMINGS = Timings(
    prompt_queue_ms=1.25,
    prefill_ms=22.0,
    generation_queue_ms=3.5,
    transfer_ms=0.75,
    decode_ms=444.0,
    ttft_ms=23.25,
    tpot_ms=None,
    total_ms=471.5,
    num_blocks_moved=7,
    num_bytes_moved=7 * 2048,
    transport="shared_memory",
    prefill_worker="prefill-0",
    decode_worker="decode-1",
    early_binding=True,
    num_preemptions=0,
    num_migrations=0,
)
ANSWERED = Outcome(
    Question(1, "Why?", is_chat=True, max_tokens=8),
    "Because.",
    3,
    Finished(0, FinishReason.STOP, None, Usage(11, 3, 4), TIMINGS),
    failure=None,
)
CANCELLED = Outcome(
    Question(2, "And", is_chat=False, max_tokens=8, cancel_after_tokens=2), "so", 2, None, None
)


def printed(width: int) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    print_outcomes([ANSWERED, CANCELLED], console)
    text = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO above
    assert isinstance(text, str)
    return text


def test_every_figure_has_its_column() -> None:
    times, moves = columns_of([ANSWERED, CANCELLED])
    first = {column.heading.replace("\n", " ").strip(): column.cells[0] for column in times}
    assert first == {
        "tokens in": "11",
        "out": "3",
        "PT queue ms": "1.2",
        "prefill ms": "22.0",
        "GT queue ms": "3.5",
        "transfer ms": "0.8",
        "decode ms": "444.0",
        "TTFT ms": "23.2",
        "TPOT ms": "-",
    }
    moved = {column.heading.replace("\n", " "): column.cells[0] for column in moves}
    assert moved == {
        "tokens cached": "4",
        "blocks moved": "7",
        "KiB moved": "14",
        "transport": "shared_memory",
        "binding": "early",
        "workers": "prefill-0 > decode-1",
    }


def test_a_cancelled_request_shows_its_tokens_and_no_times() -> None:
    times, moves = columns_of([ANSWERED, CANCELLED])
    second = [column.cells[1] for column in (*times, *moves)]
    assert second == ["-", "2", *["-"] * 13]


def test_a_wide_terminal_gets_one_table_and_a_narrow_one_two() -> None:
    assert printed(160).count("#") == 1
    assert printed(80).count("#") == 2


def test_nothing_is_cut_on_eighty_columns() -> None:
    text = printed(80)
    assert "…" not in text
    assert "shared_memory" in text
    assert "prefill-0 > decode-1" in text
    assert max(map(len, text.splitlines())) <= 80


def test_an_outcome_is_as_planned_only_if_it_ended_the_way_it_should() -> None:
    assert ANSWERED.is_as_planned
    assert CANCELLED.is_as_planned
    assert not Outcome(ANSWERED.question, "", 0, None, failure=None).is_as_planned
    assert not Outcome(CANCELLED.question, "", 0, ANSWERED.finished, failure=None).is_as_planned
    assert not Outcome(ANSWERED.question, "", 0, None, failure="[internal] no").is_as_planned
