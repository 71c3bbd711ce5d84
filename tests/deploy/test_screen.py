"""What is seen while answers arrive."""

import io

import pytest
from rich.console import Console

from deploy.local.questions import Question, demo_questions
from deploy.local.screen import LiveScreen, PlainScreen

FIRST = Question(1, "Why?", is_chat=True, max_tokens=8)
SECOND = Question(2, "The", is_chat=False, max_tokens=8)


def test_without_a_terminal_whole_lines_of_several_answers_alternate(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = " ".join(f"word{number}" for number in range(30))
    with PlainScreen() as screen:
        for word in words.split(" "):
            screen.text_arrived(FIRST, f"{word} ")
            screen.text_arrived(SECOND, f"{word}\n")
        screen.ended(FIRST, "30 tokens, stop")
        screen.ended(SECOND, "30 tokens, length")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1] > Why?"
    assert lines[1] == "[2] > The"
    first = [line.removeprefix("[1] ") for line in lines if line.startswith("[1] word")]
    assert " ".join(first).split() == words.split()
    assert all(len(line) <= 80 for line in lines)
    # The first whole line of one answer comes before the last of the other.
    assert lines.index(f"[1] {first[0]}") < lines.index("[2] word29")
    assert lines[-2:] == ["[1] (30 tokens, stop)", "[2] (30 tokens, length)"]


def test_on_a_terminal_a_whole_answer_stays_when_it_has_ended() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with LiveScreen([FIRST, SECOND], console) as screen:
        screen.text_arrived(FIRST, "[bold]so it is,\nis it not")
        screen.text_arrived(SECOND, "x" * 500)
        screen.ended(FIRST, "4 tokens, stop")
        screen.ended(SECOND, "cancelled after 2 tokens")
    text = console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO above
    assert "[bold]so it is," in text
    assert "is it not" in text
    assert "cancelled after 2 tokens" in text


def test_the_demo_asks_several_questions_and_leaves_one_early() -> None:
    questions = demo_questions()
    leaving = [question for question in questions if question.cancel_after_tokens is not None]
    assert len(questions) >= 6
    assert len(leaving) == 1
    assert [question.number for question in questions] == list(range(1, len(questions) + 1))
    assert {question.is_chat for question in questions} == {True, False}
