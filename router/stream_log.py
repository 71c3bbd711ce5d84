"""What a request has produced, kept so that Python's collector need not look at it.

The collector visits every container that lives, but for plain tuples of plain values. With a
million tokens in logs it took a third of a core and stopped the router for half a second at times.

What was sent may be dropped, oldest first; then the log knows whom it can still serve.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import cast

from router.events import EmitFinished, EmitPromptLogprobs, EmitTokens
from scheduling.ids import RequestId, TaskId
from scheduling.messages import TokensEmitted

Emission = EmitPromptLogprobs | EmitTokens | EmitFinished
# Index, task, first token index, token id, text.
_PlainToken = tuple[int, TaskId, int, int, str]
# How many tokens of each answer are not in a log, or need not be sent; None for an answer that has
# ended. Empty: all answers from their beginning.
Starts = tuple[int | None, ...]
# Measured on CPython 3.11, rounded up.
_BYTES_PER_EMISSION, _BYTES_PER_TOKEN = 700, 40
_BYTES_PER_LOGPROB, _BYTES_PER_ALTERNATIVE = 200, 120
_BYTES_PER_PLAIN = _BYTES_PER_EMISSION + _BYTES_PER_TOKEN


class StreamLog:
    """Emissions of one request in order. What comes out is equal to what went in.

    Positions count from the first that is still there.
    """

    def __init__(self, request_id: RequestId, starts: Starts = ()) -> None:
        self._request_id = request_id
        self._entries: list[_PlainToken | Emission] = []
        # Every message brings its own copy of the task's id; one of them is enough.
        self._task_id = TaskId("")
        # Memory that it takes, as an upper bound.
        self.num_bytes = 0
        # Of answers, how many of their tokens come before the log; None where their end does.
        self.begins: dict[int, int | None] = dict(enumerate(starts))
        self.num_dropped = 0
        self._has_dropped_prompt = False

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Emission]:
        return map(self._unpacked, self._entries)

    def append(self, emission: Emission) -> None:
        """Keep one more."""
        if type(emission) is EmitTokens:
            task_id, first, token_ids, text, logprobs, reason, matched = emission.tokens
            if len(token_ids) == 1 and not logprobs and reason is None and matched is None:
                if task_id != self._task_id:
                    self._task_id = task_id
                plain = (emission.index, self._task_id, first, token_ids[0], text)
                self._entries.append(plain)
                # Four bytes where one character of the text is a rare one.
                self.num_bytes += _BYTES_PER_PLAIN + 4 * len(text)
                return
        self._entries.append(emission)
        self.num_bytes += _num_bytes(emission)

    def drop(self, most: int, max_bytes: int) -> int:
        """Let go of the first emissions until `max_bytes` are left or `most` are gone; how many."""
        num_dropped, num_left_bytes = 0, self.num_bytes
        while num_dropped < most and num_left_bytes > max_bytes:
            entry = self._entries[num_dropped]
            num_left_bytes -= _num_bytes(entry)
            num_dropped += 1
            if type(entry) is EmitPromptLogprobs:
                self._has_dropped_prompt = True
            elif type(entry) is EmitFinished:
                self.begins[entry.index] = None
            else:
                index, _, end = _span(cast(_PlainToken | EmitTokens, entry))
                self.begins[index] = end
        del self._entries[:num_dropped]
        self.num_bytes = num_left_bytes
        self.num_dropped += num_dropped
        return num_dropped

    def clear(self) -> None:
        """Let go of everything: nobody is to be served any more."""
        self.drop(len(self._entries), -1)

    def can_serve(self, starts: Starts) -> bool:
        """Whether a caller who has so many tokens of each answer gets all others from here."""
        told = dict(enumerate(starts))
        for index, begin in self.begins.items():
            start = told.get(index, 0)
            if start is not None and (begin is None or start < begin):
                return False
        if not self.num_dropped:
            return True
        if self._has_dropped_prompt and all(start == 0 for start in starts):
            return False  # logprobs of the prompt come before any token: whoever has one has them
        # Text cannot be cut at a token, and the whole answer is not there to be sent instead.
        borders = self.borders()
        return all(
            start is None or start == self.begins.get(index, 0) or (index, start) in borders
            for index, start in told.items()
        )

    def borders(self) -> set[tuple[int, int]]:
        """Answers and token indices where an emission begins or ends."""
        borders: set[tuple[int, int]] = set()
        for entry in self._entries:
            if type(entry) is tuple or type(entry) is EmitTokens:
                index, first, end = _span(entry)
                borders.add((index, first))
                borders.add((index, end))
        return borders

    def is_prompt(self, position: int) -> bool:
        """Whether logprobs of the prompt stand there."""
        return type(self._entries[position]) is EmitPromptLogprobs

    def between(self, start: int, end: int) -> list[Emission]:
        """Those from `start` to before `end`."""
        return [self._unpacked(entry) for entry in self._entries[start:end]]

    def merged(self, start: int, end: int) -> list[Emission]:
        """The same, but plain tokens of one answer that stand together are one emission."""
        if end - start == 1:  # nothing to merge: so it is in calm, token by token
            return self.between(start, end)
        emissions: list[Emission] = []
        for index, run in groupby(self._entries[start:end], _answer_of):
            if index is None:
                emissions += map(self._unpacked, run)
                continue
            _, task_ids, first_indices, token_ids, texts = zip(*run, strict=True)
            tokens = TokensEmitted(task_ids[-1], first_indices[0], token_ids, "".join(texts))
            emissions.append(EmitTokens(self._request_id, index, tokens))
        return emissions

    def _unpacked(self, entry: _PlainToken | Emission) -> Emission:
        if isinstance(entry, Emission):
            return entry
        index, task_id, first, token_id, text = entry
        return EmitTokens(self._request_id, index, TokensEmitted(task_id, first, (token_id,), text))


def _span(entry: _PlainToken | EmitTokens) -> tuple[int, int, int]:
    """Answer, first token index, and the one behind the last."""
    if isinstance(entry, EmitTokens):
        first = entry.tokens.first_token_index
        return entry.index, first, first + len(entry.tokens.token_ids)
    index, _, first, _, _ = entry
    return index, first, first + 1


def _num_bytes(entry: _PlainToken | Emission) -> int:
    # Not isinstance: EmitTokens is a tuple as well.
    if type(entry) is tuple:
        return _BYTES_PER_PLAIN + 4 * len(cast(_PlainToken, entry)[4])
    match entry:
        case EmitTokens(tokens=tokens):
            # All tokens of a request have equally many alternatives.
            num_top = len(tokens.logprobs[0].top) if tokens.logprobs else 0
            return (
                _BYTES_PER_EMISSION
                + _BYTES_PER_TOKEN * len(tokens.token_ids)
                + 4 * len(tokens.text)
                + (_BYTES_PER_LOGPROB + _BYTES_PER_ALTERNATIVE * num_top) * len(tokens.logprobs)
            )
        case EmitPromptLogprobs(logprobs=scored):
            num_numbers = len(scored.logprobs) + 2 * len(scored.top_token_ids)
            return _BYTES_PER_EMISSION + 4 * num_numbers
        case _:
            return _BYTES_PER_EMISSION


def _answer_of(entry: _PlainToken | Emission) -> int | None:
    """Which answer a plain token is of; None for all else."""
    # Not isinstance: EmitTokens is a tuple as well.
    return cast(_PlainToken, entry)[0] if type(entry) is tuple else None
