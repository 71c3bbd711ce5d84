"""Pieces of a text have the ids of the whole, and no text has fewer tokens than is said."""

import unicodedata
from collections.abc import Callable
from functools import cache
from itertools import chain, pairwise

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors

from engine.bundled import bundled_model_path
from engine.text_pieces import TokenLengths, known_cuts
from engine.tokenizer import TOKENIZER_FILE, Tokenizer
from engine.tokenizer_testing import byte_level_backend, metaspace_backend, sentencepiece_backend

Backend = tokenizers.Tokenizer
# As these models have it in their tokenizer.json.
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace("{1,3}", "")


def bundled() -> Backend:
    return Backend.from_file(str(bundled_model_path() / TOKENIZER_FILE))


def byte_level(*added: AddedToken) -> Backend:
    """Without the added token of two words that the one for tests has."""
    backend = Backend(byte_level_backend().model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = byte_level_backend().decoder
    backend.add_special_tokens(["<s>", "</s>", *added])
    return backend


def split_by(words: str) -> Backend:
    backend = byte_level()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return backend


def qwen_2() -> Backend:
    backend = split_by(QWEN_2)
    backend.normalizer = normalizers.NFC()
    return backend


def llama_3() -> Backend:
    """With ids before and after."""
    backend = split_by(LLAMA_3)
    ids = [(token, backend.token_to_id(token)) for token in ("<s>", "</s>")]
    around = processors.TemplateProcessing(single="<s> <s> $A </s>", special_tokens=ids)
    backend.post_processor = processors.Sequence([processors.ByteLevel(), around])
    return backend


CUT = {"bundled": bundled, "GPT-2": byte_level, "Llama 3": llama_3, "Qwen 2": qwen_2}


@cache
def backend_of(kind: str) -> Backend:
    return CUT[kind]()


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    return Tokenizer(backend_of(kind), {})


# What rules for words look at, and what composes with its neighbours.
tricky = st.lists(
    st.sampled_from(
        [
            *"aB79 \n\r\t.,'!=<>()\u017f\u0301\u0338\u0300\uff0c\u3002\u3000\u00a0\u1f82\u212b",
            *[
                "가",
                "ᄀ",
                "ᅡ",
                "👍",
                "  ",
                "\n\n",
                " \n ",
                "'s",
                "'LL",
                "12345",
                "word",
                "é",
                "你好",
            ],
            *["<s>", "</s>", "<s"],
        ]
    ),
    max_size=60,
).map("".join)


@pytest.mark.parametrize("kind", CUT)
@given(text=tricky, piece_chars=st.integers(1, 20), adds=st.booleans())
@example(text="a \n b, c\n\n  d's 123456,7 你好\uff0ce. \u0338f", piece_chars=1, adds=True)
def test_pieces_have_the_ids_of_the_whole(
    kind: str, text: str, piece_chars: int, adds: bool
) -> None:
    tokenizer = tokenizer_of(kind)
    ends = tokenizer.ends_of_pieces(text, piece_chars)
    assert ends == sorted(set(ends))
    assert ends[-1] == len(text)
    pieces = tokenizer.encode_pieces(text, ends, add_special_tokens=adds)
    assert list(chain.from_iterable(pieces)) == tokenizer.encode(text, add_special_tokens=adds)


# Of scripts with and without spaces, with marks that join what is before them and others.
SCRIPTS = {
    "Thai": "สวัสดีครับ วันนี้อากาศดีมาก ผมจะไปที่, ค้!",
    "Lao": "ສະບາຍດີ ມື້ນີ້ອາກາດດີຫຼາຍ",
    "Khmer": "សួស្តី ថ្ងៃនេះអាកាសធាតុល្អណាស់។",
    "Burmese": "မင်္ဂလာပါ ဒီနေ့ရာသီဥတုကောင်းတယ်။ ဥ\u102e",
    "Arabic": "مَرْحَبًا، كيف حالك اليوم؟ الطقس ١٢٣ جميل.",
    "Hebrew": "שָׁלוֹם, מה שלומך היום? מזג האוויר נאה.",
    "Hindi": "नमस्ते, आज मौसम बहुत अच्छा है। क़लम फ़ोन १२३",
    "Tamil": "வணக்கம், இன்று வானிலை நன்றாக உள்ளது.",
    "Korean": "안녕하세요, 오늘 날씨가 좋네요. 한글.",
    "Japanese": "こんにちは。今日はいい天気ですね、「東京」へ行きます。",
    "Russian": "Привет, сегодня хорошая погода… Й й.",
    "Vietnamese": unicodedata.normalize("NFD", "Xin chào, hôm nay thời tiết đẹp quá."),
    "emoji": "👍 🎉🎉 ❤\ufe0f 👩\u200d👩\u200d👧 🏳\ufe0f\u200d🌈 ok👍 1\ufe0f\u20e3 ☀\ufe0f",
    "symbols": "→ ≠ ≠ ∑x∈∅ ½ Ⅻ ① °C Å Å",
}


def words_of(backend: Backend, text: str) -> list[str]:
    """What the merging of tokens never reaches over."""
    normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    assert backend.pre_tokenizer is not None
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]


def check_words(kind: str, text: str, piece_chars: int) -> list[int]:
    backend, ends = backend_of(kind), tokenizer_of(kind).ends_of_pieces(text, piece_chars)
    pieces = [text[start:end] for start, end in pairwise([0, *ends])]
    in_pieces = chain.from_iterable(words_of(backend, piece) for piece in pieces)
    assert list(in_pieces) == words_of(backend, text)
    return ends


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("script", SCRIPTS)
def test_texts_of_any_script_are_cut_between_their_words(script: str, kind: str) -> None:
    text = SCRIPTS[script]
    ends = check_words(kind, text, 1)
    # Between any two words with a space between them, at least.
    assert len(ends) > text.count(" ")
    assert {text[end] for end in ends[:-1]} >= {" "} & set(text)


@pytest.mark.parametrize("kind", CUT)
@given(
    text=st.lists(
        st.sampled_from([*"".join(SCRIPTS.values()), *" \n\t\u3000'\u0316"])
        | st.characters(codec="utf-8"),
        max_size=40,
    ).map("".join)
)
def test_no_place_is_in_a_word_whatever_characters_there_are(kind: str, text: str) -> None:
    check_words(kind, text, 1)


@pytest.mark.parametrize("kind", CUT)
def test_texts_of_known_kinds_are_cut(kind: str) -> None:
    assert len(tokenizer_of(kind).ends_of_pieces("some words, and more of them", 1)) > 3


# What a place may lie before.
MARKS = ' \n\t\r,.;:!?()[]{}<>="\u3001\u3002\uff0c'


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("is_normalized", [False, True])
def test_no_added_token_is_cut(mark: str, is_normalized: bool) -> None:
    backend = qwen_2()
    backend.add_tokens([AddedToken(f"x{mark}y", normalized=is_normalized)])
    tokenizer = Tokenizer(backend, {})
    text = f"the fox{mark}y a{mark}x{mark}y\n, the 你{mark}y"
    ends = tokenizer.ends_of_pieces(text, 1)
    assert not any(text[end - 1 : end + 1] == f"x{mark}" for end in ends)
    assert len(ends) > 1, "there are other places"
    assert list(chain.from_iterable(tokenizer.encode_pieces(text, ends))) == tokenizer.encode(text)


@pytest.mark.parametrize(
    ("written", "token"),
    [
        ("x=\u0338", "x\u2260"),
        ("x<\u0338", "x\u226e"),
        # The letter before it is composed, is spelt in two ways, has a mark that joins no letter.
        ("\u00e9=\u0338", "\u00e9\u2260"),
        ("\u212b.", "\u00c5."),
        ("\u1112\u1161.", "\ud558."),
        ("x\u0ddc\u0dca", "x\u0ddd"),
        ("x\u0316 ", "x\u0316 "),
    ],
)
def test_no_added_token_is_cut_that_the_text_spells_otherwise(written: str, token: str) -> None:
    backend = split_by(QWEN_2)
    backend.normalizer = normalizers.NFC()
    backend.add_tokens([AddedToken(f"{token}y", normalized=True)])
    tokenizer = Tokenizer(backend, {})
    text = f"fox {written}y, and fo{written}y"
    added = tokenizer.id_of(f"{token}y")
    assert [token_id for token_id in tokenizer.encode(text) if token_id == added] == [added] * 2
    ends = tokenizer.ends_of_pieces(text, 1)
    assert len(ends) > 1
    assert list(chain.from_iterable(tokenizer.encode_pieces(text, ends))) == tokenizer.encode(text)


BASIC_PLANE = [chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000]


def with_prefix_space() -> Backend:
    backend = byte_level()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return backend


def with_nfkc() -> Backend:
    backend = byte_level()
    backend.normalizer = normalizers.NFKC()
    return backend


def with_dropout() -> Backend:
    backend = byte_level()
    backend.model.dropout = 0.5
    return backend


@pytest.mark.parametrize(
    "new",
    [
        sentencepiece_backend,
        metaspace_backend,
        with_prefix_space,
        with_nfkc,
        with_dropout,
        lambda: split_by(r"\s+"),
        lambda: byte_level(AddedToken("<x>", lstrip=True)),
        lambda: byte_level(AddedToken("<x>", rstrip=True)),
        lambda: byte_level(AddedToken("<x>", single_word=True)),
        lambda: byte_level(AddedToken("x" + "x".join(BASIC_PLANE))),
    ],
)
def test_what_is_not_known_to_be_safe_is_not_cut(new: Callable[[], Backend]) -> None:
    assert known_cuts(new()) is None
    tokenizer = Tokenizer(new(), {})
    text = "the fox, the dog"
    assert tokenizer.ends_of_pieces(text, 1) == [len(text)]


KEEPING = CUT | {
    "sentencepiece": sentencepiece_backend,
    "strips": lambda: byte_level(AddedToken("<x>", lstrip=True, rstrip=True)),
    "tool": byte_level_backend,
}


@cache
def lengths_of(kind: str) -> tuple[TokenLengths, Tokenizer]:
    backend = KEEPING[kind]()
    return TokenLengths(backend), Tokenizer(backend, {})


@pytest.mark.parametrize("kind", KEEPING)
@given(text=tricky | st.sampled_from(["a" + 60 * " " + "<x>" + 90 * "\u3000", "\u1f82" * 50]))
def test_no_text_has_fewer_tokens_than_is_said(kind: str, text: str) -> None:
    lengths, tokenizer = lengths_of(kind)
    for form in (text, 30 * text):
        assert lengths.fewest(form) <= len(tokenizer.encode(form, add_special_tokens=False))


def test_a_text_of_the_longest_token_has_as_many_as_is_said() -> None:
    backend = byte_level()
    backend.add_tokens(["abcdefghijklmnop"])
    lengths = TokenLengths(backend)
    text = "abcdefghijklmnop" * 7
    assert lengths.longest == 16
    assert lengths.fewest(text) == len(backend.encode(text).ids) == 7


def test_where_a_token_may_stand_for_anything_no_number_is_said() -> None:
    # Unknown characters are one token together, or none at all.
    backends = [metaspace_backend(), with_nfkc(), byte_level()]
    backends[2].pre_tokenizer = pre_tokenizers.Whitespace()
    assert [TokenLengths(backend).fewest("a" * 10_000) for backend in backends] == [0, 0, 0]
