"""A request's timeline as text."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tandemserve.admin_results import (
    AnswerView,
    RequestHistory,
    RequestView,
    Timeline,
    TimelineEvent,
)
from tandemserve.cli.timeline_chart import chart

PHASES = ("prompt_queued", "prefilling", "generation_queued", "transferring", "decoding")


def event(at_s: float, phase: str, worker: str = "", **fields: object) -> TimelineEvent:
    values: dict[str, object] = {
        "change": "admitted", "num_blocks": 0, "num_output_tokens": 0, "number_of_try": 1,
        "reason": "", "started_at_s": None,
    }  # fmt: skip
    return TimelineEvent(at_s=at_s, phase=phase, worker_id=worker, **values | fields)  # type: ignore[arg-type]


def history(
    *events: TimelineEvent, age_s: float = 10.0, ended: float | None = None
) -> RequestHistory:
    answer = AnswerView(0, "decoding", 1.0, 7, "prefill-0", "decode-0", "", 1, 0, 0)
    view = RequestView(
        "r1", "acme", "standard", "", "running" if ended is None else "finished", age_s, ended,
        None, 30, 64, "", "", (answer,),
    )  # fmt: skip
    return RequestHistory(view, (Timeline(0, events, 0),))


def bars(lines: list[str]) -> list[str]:
    return [line.split("|", 1)[1][:-1] for line in lines if line.endswith("|")][1:]


def test_each_phase_is_a_bar_where_the_last_one_ended() -> None:
    told = history(
        event(0.0, "prompt_queued"),
        event(2.0, "prefilling", "prefill-0"),
        event(5.0, "generation_queued", "prefill-0"),
        event(6.0, "transferring", "decode-0"),
        event(7.0, "decoding", "decode-0"),
    )
    shown = bars(list(chart(told, 80)))
    assert [set(bar) - {" "} for bar in shown] == [{"."}, {"="}, {"."}, {">"}, {"#"}]
    overlaid = ["".join(column).strip() for column in zip(*shown, strict=True)]
    assert all(len(column) == 1 for column in overlaid)
    width = len(overlaid)
    assert abs(overlaid.count("=") - 0.3 * width) <= 1
    assert abs(overlaid.count("#") - 0.3 * width) <= 1


def test_the_wait_in_a_workers_own_queue_is_drawn_as_waiting() -> None:
    told = history(event(0.0, "prefilling", "prefill-0", started_at_s=5.0))
    (bar,) = bars(list(chart(told, 80)))
    assert abs(bar.count(".") - bar.count("=")) <= 1


def test_the_reason_of_a_new_try_stands_below_its_line() -> None:
    told = history(
        event(0.0, "decoding", "decode-0"),
        event(4.0, "prompt_queued", change="worker_lost", reason="worker decode-0 was lost"),
        event(5.0, "prompt_queued", change="preempted"),
    )
    lines = list(chart(told, 80))
    assert "    worker lost: worker decode-0 was lost" in lines
    assert "    preempted" in lines


def test_the_numbers_of_a_phase_are_beside_its_bar() -> None:
    told = history(
        event(0.0, "prompt_queued"),
        event(0.25, "decoding", "decode-0", num_blocks=12, num_output_tokens=34),
        event(2.0, "finished", num_output_tokens=99),
        age_s=12.0,
        ended=10.0,
    )
    lines = list(chart(told, 80))
    assert "ended after 2.0s" in lines[2]
    row = next(line for line in lines if line.startswith("  decoding"))
    assert row.split("|")[0].split() == ["decoding", "250ms", "1.8s", "decode-0", "12", "34"]
    end = next(line for line in lines if line.startswith("  finished"))
    assert end.split("|", 1)[0].split() == ["finished", "2.0s", "99"]


def test_a_long_name_of_a_worker_keeps_its_end() -> None:
    told = history(event(0.0, "decoding", "decode-in-the-east-17"))
    (row,) = [line for line in chart(told, 80) if line.startswith("  decoding")]
    assert "~the-east-17" in row


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 1e6), st.sampled_from(PHASES), st.text("abc-0123", max_size=40)),
        max_size=30,
    ),
    st.integers(0, 300),
)
def test_no_line_is_wider_than_asked_for(steps: list[tuple[float, str, str]], width: int) -> None:
    steps = sorted(steps)
    told = history(*(event(*step) for step in steps), age_s=max((s[0] for s in steps), default=0))
    for line in chart(told, width):
        assert len(line) <= max(80, width)
        assert line.isascii()
