"""StopMatcher against a reference that sees the whole text at once."""

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scheduling.errors import InvalidRequest
from scheduling.stop_strings import MAX_STOP_CHARS, StopMatcher, check_stop_strings

# Two letters make overlaps, repetitions and nested stop strings likely.
texts = st.text("ab", max_size=40)
stop_lists = st.lists(st.text("ab", min_size=1, max_size=6), max_size=5)


def reference(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Cut the text before the stop string that is complete first, the longest of several."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def run(pieces: list[str], stops: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    outcomes = [matcher.feed(piece) for piece in pieces]
    emitted = "".join(outcome.emit for outcome in outcomes) + matcher.finish()
    return emitted, outcomes[-1].matched if outcomes else None


@given(texts, stop_lists, st.lists(st.integers(0, 40), max_size=8))
@example("aab", ["aab", "ab"], [1, 2])
@example("abab", ["abaa", "bab"], [3])
def test_every_split_of_a_text_gives_what_the_whole_text_gives(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    assert run(pieces, stops) == reference(text, stops)


@given(texts, stop_lists)
def test_what_is_emitted_early_never_has_to_be_taken_back(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    emitted = ""
    for index, character in enumerate(text):
        emitted += matcher.feed(character).emit
        for stop in stops:
            # Whatever follows, nothing of a stop string that is about to complete was emitted.
            final, _ = reference(text[: index + 1] + stop, stops)
            assert final.startswith(emitted)


@given(texts, stop_lists)
def test_no_text_is_held_that_cannot_become_a_stop_string(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    emitted = "".join(matcher.feed(character).emit for character in text)
    expected, matched = reference(text, stops)
    held = "" if matched else text[len(emitted) :]
    assert emitted + held == expected
    assert not held or any(stop.startswith(held) for stop in stops)


def test_the_stop_string_that_is_complete_first_wins() -> None:
    assert run(["xabcd"], ["abcd", "bc"]) == ("xa", "bc")


def test_of_two_that_end_together_the_longer_wins_and_is_not_emitted_in_part() -> None:
    assert run(["xabc"], ["bc", "abc"]) == ("x", "abc")


def test_text_after_a_stop_string_is_dropped_for_good() -> None:
    matcher = StopMatcher(["END"])
    assert matcher.feed("a EN").emit == "a "
    assert matcher.feed("D b").matched == "END"
    after = matcher.feed("END more")
    assert (after.emit, after.matched, matcher.finish()) == ("", "END", "")


def test_without_stop_strings_everything_passes_at_once() -> None:
    assert StopMatcher([]).feed("text").emit == "text"


def test_a_sequence_that_ends_releases_the_held_text_once() -> None:
    matcher = StopMatcher(["</end>"])
    assert matcher.feed("so </en").emit == "so "
    assert (matcher.finish(), matcher.finish()) == ("</en", "")


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="leave it out"):
        StopMatcher(["END", ""])


def test_stop_strings_that_would_need_a_huge_automaton_are_refused() -> None:
    check_stop_strings(["a" * MAX_STOP_CHARS])
    with pytest.raises(InvalidRequest, match="shorten"):
        check_stop_strings(["a" * MAX_STOP_CHARS, "b"])


class CountedCharacter(str):
    """A character that counts how often it is looked up."""

    __slots__ = ()
    num_lookups = 0

    def __hash__(self) -> int:
        CountedCharacter.num_lookups += 1
        return super().__hash__()


class CountedText(str):
    """A text of counted characters."""

    __slots__ = ()

    def __iter__(self) -> Iterator[str]:
        return map(CountedCharacter, super().__iter__())


def test_the_work_is_linear_in_the_text_even_where_everything_nearly_matches() -> None:
    matcher = StopMatcher(["a" * 500 + "b"])
    rng = random.Random(7)
    text = "".join("a" * rng.randrange(400, 500) + "c" for _ in range(40))
    CountedCharacter.num_lookups = 0
    assert matcher.feed(CountedText(text)).emit == text
    # Once a character, and once more for each level fallen back, which was climbed before.
    assert len(text) <= CountedCharacter.num_lookups <= 3 * len(text)
