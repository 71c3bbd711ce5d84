"""Answers as they arrive: one live line each on a terminal, whole lines elsewhere."""

import sys
from collections.abc import Sequence
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from deploy.local.output import print_line
from deploy.local.questions import Question

# Lines of text where nobody sees them grow.
_LINE_CHARS = 76
_REFRESHES_PER_S = 12


class Screen(Protocol):
    """What is told of the answers."""

    def text_arrived(self, question: Question, text: str) -> None: ...

    def ended(self, question: Question, note: str) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


def make_screen(questions: Sequence[Question], *, is_silent: bool) -> Screen:
    """The screen that suits stdout."""
    if is_silent:
        return SilentScreen()
    return LiveScreen(questions) if sys.stdout.isatty() else PlainScreen()


class SilentScreen:
    """For programs, which read the result only."""

    def text_arrived(self, question: Question, text: str) -> None:
        """See Screen."""

    def ended(self, question: Question, note: str) -> None:
        """See Screen."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None: ...


class PlainScreen:
    """Writes a line whenever an answer has enough new words for one."""

    def __init__(self) -> None:
        self._pending_by_number: dict[int, str] = {}

    def text_arrived(self, question: Question, text: str) -> None:
        """See Screen."""
        pending = self._pending_by_number.get(question.number)
        if pending is None:
            print_line(f"[{question.number}] > {question.text}")
            pending = ""
        *complete, pending = (pending + text).split("\n")
        while len(pending) > _LINE_CHARS:
            end = pending.rfind(" ", 1, _LINE_CHARS + 1)
            end = _LINE_CHARS if end == -1 else end
            complete.append(pending[:end])
            pending = pending[end:].removeprefix(" ")
        for line in complete:
            self._write(question, line)
        self._pending_by_number[question.number] = pending

    def ended(self, question: Question, note: str) -> None:
        """See Screen."""
        self._write(question, self._pending_by_number.pop(question.number, ""))
        print_line(f"[{question.number}] ({note})")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None: ...

    def _write(self, question: Question, line: str) -> None:
        if line.strip():
            print_line(f"[{question.number}] {line}")


class LiveScreen:
    """One line for each running answer, with its last words; whole answers above them."""

    def __init__(self, questions: Sequence[Question], console: Console | None = None) -> None:
        self._console = console or Console(markup=False, highlight=False)
        self._text_by_number = {question.number: "" for question in questions}
        self._live = Live(
            console=self._console, refresh_per_second=_REFRESHES_PER_S, transient=True
        )

    def text_arrived(self, question: Question, text: str) -> None:
        """See Screen."""
        self._text_by_number[question.number] += text
        self._live.update(self._view())

    def ended(self, question: Question, note: str) -> None:
        """See Screen."""
        text = self._text_by_number.pop(question.number)
        self._live.update(self._view())
        self._console.print(
            Text.assemble(
                (f"[{question.number}] {question.text}", "bold"),
                f" {text.strip()} ",
                (f"({note})\n", "dim"),
            )
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def _view(self) -> Group:
        lines = []
        for number, text in self._text_by_number.items():
            head = f"[{number}] "
            # The end of a text is what is new.
            tail = " ".join(text.split())[-max(1, self._console.width - len(head) - 1) :]
            lines.append(Text.assemble((head, "bold"), tail, no_wrap=True))
        return Group(*lines)
