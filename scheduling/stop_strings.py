"""Stops a sequence at a text, whatever pieces the text arrives in.

Between the detokenizer and the stream to the client: what could still become a stop string waits
here, so that the client never sees a part of one.
Source: Aho and Corasick, Efficient string matching, CACM 1975.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from scheduling.errors import InvalidRequest

# All stop strings of one request together; an automaton takes some hundred bytes a character.
MAX_STOP_CHARS = 8192


@dataclass(frozen=True, slots=True)
class StopOutcome:
    """What one piece of text led to."""

    # Certain text, for the client.
    emit: str
    # The stop string that ended the sequence; None while it goes on.
    matched: str | None = None


class StopMatcher:
    """Watches one sequence for stop strings, in time linear in the text.

    The stop string that is complete first wins: the sequence ends at that character, as waiting
    for a longer one would compute tokens that nobody sees. Of several that end at the same
    character the longest wins: it begins first, and no part of it may be emitted.
    """

    __slots__ = ("_automaton", "_matched", "_state")

    def __init__(self, stop_strings: Sequence[str]) -> None:
        """Raises: InvalidRequest, see check_stop_strings."""
        check_stop_strings(stop_strings)
        self._automaton = _Automaton(stop_strings)
        # How much of a stop string the text ends with; that much of the text is held back.
        self._state = 0
        self._matched: str | None = None

    def feed(self, text: str) -> StopOutcome:
        """Take the next piece. After a match all text is dropped and the match repeated."""
        if self._matched is not None:
            return StopOutcome("", self._matched)
        automaton = self._automaton
        held_state = state = self._state
        # The usual piece: nothing waits, and nothing in it begins a stop string.
        if state == 0 and automaton.first_characters.isdisjoint(text):
            return StopOutcome(text)
        for index, character in enumerate(text):
            state = automaton.next_state(state, character)
            matched = automaton.match[state]
            if matched is not None:
                self._matched, self._state = matched, 0
                num_certain = automaton.depth[held_state] + index + 1 - len(matched)
                return StopOutcome(automaton.joined(held_state, text, num_certain), matched)
        self._state = state
        num_certain = automaton.depth[held_state] + len(text) - automaton.depth[state]
        return StopOutcome(automaton.joined(held_state, text, num_certain))

    def finish(self) -> str:
        """The text held back, when no more follows; empty after a match."""
        held_state, self._state = self._state, 0
        return self._automaton.joined(held_state, "", self._automaton.depth[held_state])


def check_stop_strings(stop_strings: Sequence[str]) -> None:
    """Refuse what no matcher takes.

    Raises: InvalidRequest for an empty stop string, and for too much text in all of them.
    """
    if not all(stop_strings):
        raise InvalidRequest("stop", "a stop string is empty and would match at once; leave it out")
    num_chars = sum(map(len, stop_strings))
    if num_chars > MAX_STOP_CHARS:
        raise InvalidRequest(
            "stop",
            f"the stop strings have {num_chars} characters together, at most {MAX_STOP_CHARS} "
            "are allowed; shorten them",
        )


class _Automaton:
    """A state is a prefix of some stop string: the longest one that the text read so far ends with.

    Invariant: a state's text is source[state][:depth[state]].
    """

    __slots__ = ("_fallback", "_next_by_character", "depth", "first_characters", "match", "source")

    def __init__(self, stop_strings: Sequence[str]) -> None:
        self._next_by_character: list[dict[str, int]] = [{}]
        self.depth = [0]
        self.source = [""]
        # The longest stop string that a state's text ends with.
        self.match: list[str | None] = [None]
        for stop_string in stop_strings:
            self._insert(stop_string)
        self.first_characters = frozenset(self._next_by_character[0])
        # The state of the longest proper suffix that is a state too.
        self._fallback = [0] * len(self.depth)
        self._link()

    def next_state(self, state: int, character: str) -> int:
        """Falls back at most as often as characters were read before: linear over a text."""
        while (found := self._next_by_character[state].get(character)) is None:
            if state == 0:
                return 0
            state = self._fallback[state]
        return found

    def joined(self, state: int, text: str, num_chars: int) -> str:
        """The first characters of the state's text followed by `text`; linear in num_chars."""
        num_held = min(self.depth[state], num_chars)
        return self.source[state][:num_held] + text[: num_chars - num_held]

    def _insert(self, stop_string: str) -> None:
        state = 0
        for depth, character in enumerate(stop_string, start=1):
            found = self._next_by_character[state].get(character)
            if found is None:
                found = len(self.depth)
                self._next_by_character[state][character] = found
                self._next_by_character.append({})
                self.depth.append(depth)
                self.source.append(stop_string)
                self.match.append(None)
            state = found
        self.match[state] = stop_string

    def _link(self) -> None:
        # Breadth first: a shorter state's link is final before a longer one needs it.
        waiting = deque(self._next_by_character[0].values())
        while waiting:
            state = waiting.popleft()
            for character, child in self._next_by_character[state].items():
                self._fallback[child] = self.next_state(self._fallback[state], character)
                if self.match[child] is None:
                    self.match[child] = self.match[self._fallback[child]]
                waiting.append(child)
