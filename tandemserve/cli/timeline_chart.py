"""One request's timeline as text: a line for each phase with its bar on a common axis.

Pure: a history and a width in, lines out. ASCII only, so that every terminal and log shows it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tandemserve.admin_results import AnswerView, RequestHistory, Timeline, TimelineEvent
from tandemserve.cli.durations import brief

MIN_WIDTH = 76
_MARKS = {
    "prompt_queued": ".",
    "prefilling": "=",
    "generation_queued": ".",
    "transferring": ">",
    "decoding": "#",
}
_LEGEND = ". waits   = prefill   > transfer   # decode"
# What an event is called where its phase alone would not tell why it was entered.
_NEEDS_CHANGE = frozenset(
    {"preempted", "outgrown", "swapped_out", "swapped_in", "worker_lost", "evacuated", "gave_up"}
    | {"caller_left", "operator_cancelled"}
)
_ENDS = frozenset({"finished", "failed", "cancelled"})
_MAX_WORKER = 12


@dataclass(frozen=True, slots=True)
class _Axis:
    """Seconds to columns."""

    total_s: float
    width: int

    def bar(self, begin_s: float, end_s: float, mark: str, started_at_s: float | None) -> str:
        """The phase as marks; the part before the worker began is waiting."""
        # The shortest phase is one mark, also at the very end.
        first = min(self._column(begin_s), self.width - 1)
        length = max(1, self._column(end_s) - first)
        num_waiting = 0 if started_at_s is None else self._column(started_at_s) - first
        num_waiting = min(max(0, num_waiting), length - 1)
        marks = "." * num_waiting + mark * (length - num_waiting)
        return (" " * first + marks).ljust(self.width)

    def _column(self, at_s: float) -> int:
        share = at_s / self.total_s if self.total_s > 0 else 0.0
        return min(self.width, max(0, int(share * self.width)))


def chart(history: RequestHistory, width: int) -> Iterator[str]:
    """The lines, none longer than `width` unless a name is."""
    width = max(MIN_WIDTH, width)
    yield from _heading(history)
    for answer, timeline in zip(history.request.answers, history.timelines, strict=True):
        yield ""
        yield from _answer_lines(answer)
        yield from _rows(history, timeline, width)
    yield ""
    yield _LEGEND


def _heading(history: RequestHistory) -> Iterator[str]:
    view = history.request
    yield f"request {view.request_id}: {view.state}"
    line = f"{view.request_class}, tenant {view.tenant}, {view.num_prompt_tokens} prompt tokens"
    yield f"  {line}, answer of at most {view.max_tokens}"
    ages = f"arrived {brief(view.age_s)} ago"
    if view.ended_ago_s is not None:
        ages += f", ended after {brief(view.age_s - view.ended_ago_s)}"
    elif view.time_to_deadline_s is not None:
        ages += f", deadline in {brief(view.time_to_deadline_s)}"
    yield f"  {ages}"
    if view.error_code:
        yield f"  [{view.error_code}] {view.error_message}"


def _answer_lines(answer: AnswerView) -> Iterator[str]:
    counts = [_count(answer.num_output_tokens, "token")]
    if answer.num_tries > 1:
        counts.append(f"try {answer.num_tries}")
        counts.append(_count(answer.num_preemptions, "preemption"))
        counts.append(_count(answer.num_migrations, "migration"))
    yield f"answer {answer.index}: {', '.join(counts)}"
    if answer.waits_for:
        yield f"  waits for {answer.waits_for}"


def _rows(history: RequestHistory, timeline: Timeline, width: int) -> Iterator[str]:
    view, events = history.request, timeline.events
    end_s = view.age_s - (view.ended_ago_s or 0.0)
    names = [event.worker_id for event in events]
    worker_width = min(_MAX_WORKER, max((len(name) for name in names), default=0))
    worker_width = max(worker_width, len("worker"))
    names_of_columns = f"{'worker':<{worker_width}} {'blocks':>6} {'tokens':>6} "
    head = f"  {'phase':<17} {'at':>6} {'for':>6} {names_of_columns}"
    axis = _Axis(end_s, width - len(head) - 2)
    yield head + "|" + _scale(axis) + "|"
    ends = [*(event.at_s for event in events[1:]), end_s]
    for event, until_s in zip(events, ends, strict=False):
        is_end = event.phase in _ENDS
        mark = "|" if is_end else _MARKS.get(event.phase, "?")
        bar = axis.bar(event.at_s, until_s, mark, event.started_at_s)
        lasted = "" if is_end else brief(until_s - event.at_s)
        blocks = str(event.num_blocks) if event.num_blocks else ""
        worker = _shortened(event.worker_id, worker_width)
        yield (
            f"  {event.phase:<17} {brief(event.at_s):>6} {lasted:>6} {worker:<{worker_width}} "
            f"{blocks:>6} {event.num_output_tokens:>6} |{bar}|"
        )
        yield from _why(event)
    if timeline.num_dropped:
        yield f"  ({timeline.num_dropped} events in between were not kept)"


def _why(event: TimelineEvent) -> Iterator[str]:
    words = event.change.replace("_", " ")
    if event.reason:
        yield f"    {words}: {event.reason}"
    elif event.change in _NEEDS_CHANGE:
        yield f"    {words}"


def _scale(axis: _Axis) -> str:
    """The two ends of the axis, written above the bars."""
    end = brief(axis.total_s)
    return "0" + "-" * max(0, axis.width - 1 - len(end)) + end


def _shortened(name: str, width: int) -> str:
    # The number of a worker stands at its end.
    return name if len(name) <= width else "~" + name[-(width - 1) :]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
