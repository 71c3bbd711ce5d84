"""Between which two characters a text may be cut so that no word and no added token is.

Two kinds of places are safe in every script, by the rules for words of GPT-2, Llama 3 and Qwen 2:
behind a letter or digit, before what is none; and behind anything that is seen, before a space that
is no new line. No word reaches over such a place, no rule looks back, and whether a word ends there
does not depend on what follows. What is before the place and what is behind it do not become one
character, nor change their order, where a text is put into NFC.

A text without any such place is one word to these rules, however long it is: letters with no sign,
mark or space between them, as in a Japanese or Thai text without either, or a row of emoji. A word
cannot be cut: any two of its characters may be in one token.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby, pairwise

Places = tuple[re.Pattern[str], ...]

# Libraries know Unicode in different versions. What was a letter in this old one and is one today
# is a letter to all of them; what was none then and is none today, to none.
_OLD = unicodedata.ucd_3_2_0
# Beyond there are letters that hardly any text has, and emoji: behind a space these are cut too.
_CHARS = tuple(map(chr, range(0x10000)))
# Spaces in every version, and everything that is one in some.
_SPACES, _ANY_SPACE = " \t\u3000", r"\s\u180e\u200b\ufeff"


def places_outside(tokens: Iterable[str]) -> Places:
    """Where no added token can be cut, however the text spells it; () where there is no place.

    Many models have tokens like <tool_call>: their texts are not cut before what follows a letter
    in one of them, nor before a space that follows something else. Each pattern ends at a place.
    """
    # What NFC makes of two spellings is the same, and so are the first characters it is made of.
    pairs = {pair for token in tokens for pair in pairwise(unicodedata.normalize("NFD", token))}
    in_words = {behind for before, behind in pairs if unicodedata.category(before)[0] in "LNM"}
    in_tokens = {behind for before, behind in pairs if not before.isspace()}
    signs = [c for c in _signs() if unicodedata.normalize("NFD", c)[0] not in in_words]
    spaces = [c for c in _SPACES if c not in in_tokens]
    places = ((_class_of(_letters()), signs), (f"[^{_ANY_SPACE}]", spaces))
    return tuple(
        re.compile(f"{before}(?={_class_of(behind)})") for before, behind in places if behind
    )


def ends_of_pieces(text: str, piece_chars: int, places: Places) -> list[int]:
    """Where to cut: pieces of that many characters, or longer ones where there is no such place."""
    ends: list[int] = []
    # One look at a time is short: other threads have their turns between them.
    at = piece_chars
    while at < len(text):
        found = [place.search(text, at - 1, at + piece_chars) for place in places]
        end = min((match.end() for match in found if match is not None), default=None)
        if end is not None:
            ends.append(end)
            at = end
        at += piece_chars
    return [*ends, len(text)]


@cache
def _letters() -> list[str]:
    """Letters and digits that stay what they are in NFC."""
    return [
        c
        for c in _CHARS
        if _kind(c) in "LN" and _OLD.category(c)[0] in "LN" and unicodedata.is_normalized("NFC", c)
    ]


@cache
def _signs() -> list[str]:
    """Spaces, and signs and marks that never become a part of what is before them."""
    joining = {part for char in _CHARS for part in _composed_of(char)[1:]}
    signs = [
        c
        for c in _CHARS
        if _kind(c) in "MPS"
        and _OLD.category(c)[0] not in "LNZ"
        and c not in joining
        and not unicodedata.combining(c)
        and unicodedata.is_normalized("NFC", c)
    ]
    return [*_SPACES, "\n", "\r", *signs]


def _kind(char: str) -> str:
    return unicodedata.category(char)[0]


def _composed_of(char: str) -> list[str]:
    """The characters that NFC makes this one of; [] where it makes it of none."""
    parts = unicodedata.decomposition(char).split()
    return [chr(int(part, 16)) for part in parts] if parts and "<" not in parts[0] else []


def _class_of(chars: Iterable[str]) -> str:
    """A set of characters for a pattern: as ranges it is read in a tenth of the time."""
    return f"[{''.join(_ranges(sorted(map(ord, chars))))}]"


def _ranges(codes: list[int]) -> Iterator[str]:
    for _, numbered in groupby(enumerate(codes), lambda pair: pair[1] - pair[0]):
        run = [code for _, code in numbered]
        yield f"\\u{run[0]:04x}-\\u{run[-1]:04x}"
