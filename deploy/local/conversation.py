"""Ask all questions at once through the SDK and collect what became of each."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.local.questions import Question
from deploy.local.screen import Screen
from tandemserve import (
    AsyncClient,
    AsyncStream,
    ChatMessage,
    Delta,
    Finished,
    RequestCancelled,
    TandemError,
    Usage,
)

_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one question ended."""

    question: Question
    text: str
    num_output_tokens: int
    # None when it was cancelled or failed.
    finished: Finished | None
    # In one line; None when nothing went wrong.
    failure: str | None

    @property
    def usage(self) -> Usage | None:
        return None if self.finished is None else self.finished.usage

    @property
    def is_as_planned(self) -> bool:
        """It was answered, or cancelled where that was the plan."""
        was_cancelled = self.failure is None and self.finished is None
        return self.failure is None and was_cancelled == (
            self.question.cancel_after_tokens is not None
        )


async def ask_all(
    client: AsyncClient, questions: Sequence[Question], screen: Screen
) -> tuple[Outcome, ...]:
    """Send all at once; the outcomes come in the order of the questions."""
    has_template = (await client.model_info()).has_chat_template
    return tuple(
        await asyncio.gather(
            *(_ask(client, question, screen, has_template) for question in questions)
        )
    )


async def _ask(
    client: AsyncClient, question: Question, screen: Screen, has_template: bool
) -> Outcome:
    reader = _Reader(question, screen)
    try:
        async with _stream(client, question, has_template) as stream:
            await reader.read(stream)
    except RequestCancelled:
        if question.cancel_after_tokens is None:
            reader.failure = "was cancelled by somebody else"
    except TandemError as error:
        reader.failure = f"[{error.code}] {error.message}"
    return reader.outcome()


def _stream(client: AsyncClient, question: Question, has_template: bool) -> AsyncStream:
    if question.is_chat and has_template:
        messages = [ChatMessage("user", question.text)]
        return client.stream_chat(
            messages, max_tokens=question.max_tokens, temperature=0.0, timeout_s=_TIMEOUT_S
        )
    return client.stream(
        question.text,
        max_tokens=question.max_tokens,
        temperature=0.0,
        # Who leaves early must not be overtaken by the end of the answer.
        ignore_eos=question.cancel_after_tokens is not None,
        timeout_s=_TIMEOUT_S,
    )


class _Reader:
    """Reads one stream and shows it on the way."""

    def __init__(self, question: Question, screen: Screen) -> None:
        self._question = question
        self._screen = screen
        self._text = ""
        self._num_tokens = 0
        self._finished: Finished | None = None
        self.failure: str | None = None

    async def read(self, stream: AsyncStream) -> None:
        """Raises: TandemError, among them RequestCancelled where the question says so."""
        async for event in stream:
            match event:
                case Delta():
                    self._text += event.text
                    self._num_tokens += len(event.token_ids)
                    self._screen.text_arrived(self._question, event.text)
                    limit = self._question.cancel_after_tokens
                    if limit is not None and self._num_tokens >= limit:
                        stream.cancel()
                case Finished():
                    self._finished = event

    def outcome(self) -> Outcome:
        """To be called once, at the end."""
        if self.failure is not None:
            note = self.failure
        elif self._finished is None:
            note = f"cancelled after {self._num_tokens} tokens"
        else:
            note = f"{self._num_tokens} tokens, {self._finished.finish_reason}"
        self._screen.ended(self._question, note)
        return Outcome(self._question, self._text, self._num_tokens, self._finished, self.failure)
