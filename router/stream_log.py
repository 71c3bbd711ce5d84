"""What a request has produced, kept so that Python's collector need not look at it.

The collector visits every container that lives, but for plain tuples of plain values. With a
million tokens in logs it took a third of a core and stopped the router for half a second at times.
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


class StreamLog:
    """Emissions of one request in order. What comes out is equal to what went in."""

    def __init__(self, request_id: RequestId) -> None:
        self._request_id = request_id
        self._entries: list[_PlainToken | Emission] = []
        # Every message brings its own copy of the task's id; one of them is enough.
        self._task_id = TaskId("")
        # Of the emissions that are one token without anything else; all others.
        self.num_plain = 0
        self.num_plain_chars = 0
        self.others: list[Emission] = []

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
                self.num_plain += 1
                self.num_plain_chars += len(text)
                return
        self._entries.append(emission)
        self.others.append(emission)

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


def _answer_of(entry: _PlainToken | Emission) -> int | None:
    """Which answer a plain token is of; None for all else."""
    # Not isinstance: EmitTokens is a tuple as well.
    return cast(_PlainToken, entry)[0] if type(entry) is tuple else None
