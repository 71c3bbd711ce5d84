"""Turns the messages of one generation, over any number of attempts, into events without repeats.

A repeated `Generate` replays the answer, cut into other deltas than before, from its first token or
from any place where a delta ended earlier. This module skips what was already passed on, checks
that it is the same answer, and checks every index, so that a wrong token never gets through. Pure:
no I/O, no clock.
"""

from dataclasses import replace

from tandemserve.errors import ProtocolViolation
from tandemserve.results import (
    Accepted,
    Choice,
    Completion,
    Delta,
    Event,
    Finished,
    PromptLogprobs,
    TokenLogprobs,
)


class _Answer:
    """One of the n answers: what was passed on, and how far this attempt has got."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.finished: Finished | None = None
        self.token_ids: list[int] = []
        self.pieces: list[str] = []
        self.logprobs: list[TokenLogprobs] = []
        # Characters before each token at which some delta began or ended: text is a function of
        # the tokens, so an attempt may begin at any of these.
        self.num_chars_before = {0: 0}
        # Where the newest delta began: there the answer was not over.
        self.checkpoint = 0
        self.begin_attempt()

    def begin_attempt(self) -> None:
        self.has_begun = False
        self.num_replayed_tokens = 0
        self.num_replayed_chars = 0
        self.is_closed = False
        # What earlier attempts passed on; joined once, a replay is compared with it.
        self.old_text = "".join(self.pieces)
        self.num_old_tokens = len(self.token_ids)

    def advance(self, delta: Delta) -> Delta | None:
        """What is new in the delta; None when nothing is."""
        if self.is_closed:
            raise _violation(f"answer {self.index} goes on after its end")
        if not self.has_begun and delta.first_token_index in self.num_chars_before:
            self.num_replayed_tokens = delta.first_token_index
            self.num_replayed_chars = self.num_chars_before[delta.first_token_index]
        if delta.first_token_index != self.num_replayed_tokens:
            raise _violation(
                f"answer {self.index} jumps to token {delta.first_token_index} "
                f"where {self.num_replayed_tokens} was due"
            )
        if delta.logprobs and len(delta.logprobs) != len(delta.token_ids):
            raise _violation(
                f"{len(delta.logprobs)} logprobs came with {len(delta.token_ids)} tokens"
            )
        self.has_begun = True
        num_known = self._skip_known_tokens(delta.token_ids)
        text = self._skip_known_text(delta.text)
        self.checkpoint = max(self.checkpoint, delta.first_token_index)
        self.num_chars_before[self.num_replayed_tokens] = self.num_replayed_chars
        token_ids = delta.token_ids[num_known:]
        if not token_ids and not text:
            return None
        new = replace(
            delta,
            first_token_index=len(self.token_ids),
            token_ids=token_ids,
            text=text,
            logprobs=delta.logprobs[num_known:],
        )
        self.token_ids.extend(new.token_ids)
        self.pieces.append(new.text)
        self.logprobs.extend(new.logprobs)
        return new

    def _skip_known_tokens(self, token_ids: tuple[int, ...]) -> int:
        start = self.num_replayed_tokens
        num_known = max(0, min(len(token_ids), self.num_old_tokens - start))
        if list(token_ids[:num_known]) != self.token_ids[start : start + num_known]:
            raise _violation(f"answer {self.index} was replayed with other tokens")
        self.num_replayed_tokens += len(token_ids)
        return num_known

    def _skip_known_text(self, text: str) -> str:
        # Text lags behind tokens by a varying amount, so it is counted on its own.
        start = self.num_replayed_chars
        num_known = max(0, min(len(text), len(self.old_text) - start))
        if text[:num_known] != self.old_text[start : start + num_known]:
            raise _violation(f"answer {self.index} was replayed with other text")
        self.num_replayed_chars += len(text)
        return text[num_known:]

    def finish(self, finished: Finished) -> Finished | None:
        """The event, or None when it was passed on in an earlier attempt."""
        if self.is_closed:
            raise _violation(f"answer {self.index} ended twice")
        if self.num_replayed_tokens < len(self.token_ids):
            raise _violation(f"answer {self.index} was replayed with fewer tokens")
        if self.num_replayed_chars < len(self.old_text):
            raise _violation(f"answer {self.index} was replayed with less text")
        self.is_closed = True
        if self.finished is not None:
            return None
        self.finished = finished
        return finished

    def choice(self) -> Choice:
        """The whole answer.

        Raises: ProtocolViolation when it has not ended.
        """
        if self.finished is None:
            raise _violation("the stream ended before the answer did")
        return Choice(
            index=self.index,
            text="".join(self.pieces),
            token_ids=tuple(self.token_ids),
            logprobs=tuple(self.logprobs),
            finish_reason=self.finished.finish_reason,
            matched_stop=self.finished.matched_stop,
            usage=self.finished.usage,
            timings=self.finished.timings,
        )


class _Prompt:
    """The logprobs of the prompt, where asked for: those of all answers and attempts are one."""

    def __init__(self) -> None:
        # Of the second prompt token and those that follow.
        self.logprobs: list[TokenLogprobs] = []

    def advance(self, event: PromptLogprobs) -> PromptLogprobs | None:
        """What is new in the event; None when nothing is."""
        due = len(self.logprobs) + 1
        if not 1 <= event.first_token_index <= due:
            raise _violation(
                f"logprobs of prompt token {event.first_token_index} came where {due} was due"
            )
        new = event.logprobs[due - event.first_token_index :]
        self.logprobs.extend(new)
        return PromptLogprobs(due, new) if new else None


class Replay:
    """The state of one generation across attempts."""

    def __init__(self, request_id: str, num_choices: int) -> None:
        self._request_id = request_id
        self._answers = tuple(_Answer(index) for index in range(num_choices))
        self._prompt = _Prompt()
        self._is_accepted = False
        # None until the server has answered.
        self.accepted: Accepted | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every answer has ended; a connection that breaks now is no loss."""
        return all(answer.finished is not None for answer in self._answers)

    @property
    def has_news(self) -> bool:
        """Whether anything was received that the next attempt need not begin with."""
        return self.accepted is not None

    def received(self) -> tuple[tuple[int, tuple[int, ...], bool], ...]:
        """Of each answer: its index, the tokens to go on from, and whether it has ended.

        The newest delta is left out: whether it was the last is not known before its finish.
        """
        return tuple(
            (answer.index, (), True)
            if answer.finished is not None
            else (answer.index, tuple(answer.token_ids[: answer.checkpoint]), False)
            for answer in self._answers
        )

    def begin_attempt(self) -> None:
        """The call is made (again): the server begins where it likes, but not later than here."""
        self._is_accepted = False
        for answer in self._answers:
            answer.begin_attempt()

    def receive(self, request_id: str, event: Accepted | Event) -> Event | None:
        """What the caller has not seen yet of this message; None when nothing.

        Raises: ProtocolViolation, and then nothing of the message counts.
        """
        if request_id != self._request_id:
            raise _violation(f"an answer to request {request_id!r} arrived")
        if isinstance(event, Accepted):
            if self._is_accepted:
                raise _violation("the request was accepted twice")
            self._is_accepted = True
            self.accepted = self.accepted or event
            return None
        if not self._is_accepted:
            raise _violation("an answer began before the request was accepted")
        if isinstance(event, PromptLogprobs):
            return self._prompt.advance(event)
        if event.index >= len(self._answers):
            raise _violation(f"answer {event.index} arrived, {len(self._answers)} were asked for")
        answer = self._answers[event.index]
        return answer.advance(event) if isinstance(event, Delta) else answer.finish(event)

    def end(self) -> None:
        """The server closed the stream in order.

        Raises: ProtocolViolation when an answer is not complete.
        """
        # One that had ended in an earlier attempt may be left out.
        if not all(answer.is_closed or answer.finished for answer in self._answers):
            raise _violation("the stream ended before the answer did")

    def completion(self) -> Completion:
        """Everything that was passed on, as one value.

        Raises: ProtocolViolation when an answer is not complete.
        """
        choices = tuple(answer.choice() for answer in self._answers)
        if self.accepted is None:
            raise _violation("the request was never accepted")
        logprobs = self._prompt.logprobs
        return Completion(
            request_id=self._request_id,
            model=self.accepted.model,
            seed=self.accepted.seed,
            choices=choices,
            prompt_logprobs=(None, *logprobs) if logprobs else (),
        )


def _violation(problem: str) -> ProtocolViolation:
    return ProtocolViolation(f"{problem}; report this with the versions of client and router")
