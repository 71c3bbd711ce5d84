"""What the demo asks: several prompts at once, and one whose user leaves before the end."""

from dataclasses import dataclass

from engine.bundled.prompts import DEMO_PROMPTS


@dataclass(frozen=True, slots=True)
class Question:
    """One request of the demo."""

    # From 1, as shown.
    number: int
    text: str
    # Goes through the chat template where the model has one.
    is_chat: bool
    max_tokens: int
    # Cancelled after so many tokens; None lets it end.
    cancel_after_tokens: int | None = None


def demo_questions() -> tuple[Question, ...]:
    """The prompts that suit the bundled model, then the one that is cancelled."""
    asked = [
        Question(number, prompt.text, prompt.is_chat, prompt.max_tokens)
        for number, prompt in enumerate(DEMO_PROMPTS, start=1)
    ]
    left = Question(len(asked) + 1, "The following", False, 200, cancel_after_tokens=8)
    return (*asked, left)
