"""Prompts that the bundled model answers readably: what `make demo` sends, at temperature 0."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DemoPrompt:
    """A text to continue, or a question to put through the chat template."""

    text: str
    is_chat: bool
    max_tokens: int


DEMO_PROMPTS = (
    DemoPrompt("What does the len function return?", is_chat=True, max_tokens=96),
    DemoPrompt("What is a dictionary?", is_chat=True, max_tokens=96),
    DemoPrompt("When is KeyError raised?", is_chat=True, max_tokens=96),
    DemoPrompt("How do I modify a string in place?", is_chat=True, max_tokens=96),
    DemoPrompt("Why are Python strings immutable?", is_chat=True, max_tokens=96),
    DemoPrompt("This module implements pseudo-random", is_chat=False, max_tokens=96),
    DemoPrompt("This module provides a", is_chat=False, max_tokens=96),
    DemoPrompt("Return True if the", is_chat=False, max_tokens=48),
)
