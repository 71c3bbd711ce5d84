"""Where a text is cut, and how long its pieces are."""

import unicodedata

import pytest

from engine.text_places import ends_of_pieces, places_outside

BASIC_PLANE = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]


def places_of(text: str, *tokens: str) -> list[int]:
    return ends_of_pieces(text, 1, places_outside(tokens))[:-1]


@pytest.mark.parametrize("piece_chars", [1, 2, 10, 10_000])
def test_a_text_is_cut_wherever_words_end_and_pieces_are_not_much_longer(piece_chars: int) -> None:
    text = "some words, and more of them\n" * 100
    places = places_outside(["<s>"])
    ends = ends_of_pieces(text, piece_chars, places)
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert max(lengths) <= piece_chars + len("words") + 2
    assert min(lengths[:-1], default=piece_chars) >= piece_chars
    # No place at all, and one that lies just before the end of a look.
    assert ends_of_pieces("." * 1000, piece_chars, places) == [1000]
    late = "." * (2 * piece_chars - 1) + "a" + "." * 3
    assert ends_of_pieces(late, piece_chars, places)[0] == 2 * piece_chars


def test_a_place_is_between_a_word_and_what_is_none_or_before_a_space() -> None:
    assert places_of("ab, c! d") == [2, 3, 5, 6]
    assert places_of("การ ดี") == [3, 5]
    assert places_of("👍👍 👍") == [2]
    # A new line and a mark belong to signs before them.
    assert places_of("a!\nb") == [1]
    assert places_of("a\u0e49.") == []


@pytest.mark.parametrize(
    "text",
    [
        "e\u0301",
        # Over a mark that joins no letter, and over one that NFC takes apart.
        "e\u0316\u0301",
        "e\u0f73\u0301",
        # A mark that stands for itself elsewhere.
        "\u1025\u102e",
    ],
)
def test_no_place_is_before_what_may_become_one_with_a_letter(text: str) -> None:
    assert unicodedata.normalize("NFC", text)[0] != text[0]
    assert places_of(text) == []


@pytest.mark.parametrize("text", ["a" * 99, "今日は" * 33, "👍" * 99, "!?" * 50, "\n" * 99, ""])
def test_one_word_has_no_place(text: str) -> None:
    assert places_of(text) == []


def test_added_tokens_take_only_the_places_that_are_in_them() -> None:
    text = "a=b! c\u3002 d"
    assert places_of(text) == [1, 3, 4, 6, 7]
    assert places_of(text, "<x=1>") == [3, 4, 6, 7]
    assert places_of(text, "tool call") == [1, 3, 6]
    # Spaces only, as models of code have them.
    assert places_of(text, "  ", "    ") == places_of(text)
    assert places_of(text, "x" + "x".join(BASIC_PLANE)) == []


def test_letters_that_nfc_takes_apart_are_no_letters_here() -> None:
    taken_apart = [chr(code) for code in range(0x3000) if chr(code).isalpha()]
    taken_apart = [c for c in taken_apart if not unicodedata.is_normalized("NFC", c)]
    assert "\u0958" in taken_apart
    assert places_of("".join(f"{letter}." for letter in taken_apart)) == []
