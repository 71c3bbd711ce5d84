"""Token by token the same text as the library gives for the whole sequence."""

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engine.detokenizer import IncrementalDetokenizer
from engine.tokenizer import Tokenizer
from engine.tokenizer_testing import (
    SPECIAL_TOKEN_BY_NAME,
    byte_level_backend,
    metaspace_backend,
    sentencepiece_backend,
)

BACKENDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte level": byte_level_backend,
    "sentencepiece": sentencepiece_backend,
    "sentencepiece, first space kept": lambda: sentencepiece_backend(strips_first_space=False),
    "metaspace": metaspace_backend,
}
TOKENIZERS = {
    kind: Tokenizer(make(), dict(SPECIAL_TOKEN_BY_NAME)) for kind, make in BACKENDS.items()
}
BYTE_LEVEL, SENTENCEPIECE = TOKENIZERS["byte level"], TOKENIZERS["sentencepiece"]

kinds = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS.keys())
fragments = st.sampled_from(
    [
        "👍",
        "👩‍👩‍👧",
        "🇩🇪",
        "你好",
        "e\u0301",
        "n\u0303",
        " ",
        "  ",
        "\n",
        "the",
        " fox",
        "▁",
        "<s>",
        "</s>",
    ]
)
texts = st.lists(fragments | st.text(max_size=4), max_size=8).map("".join)


def stream(tokenizer: Tokenizer, prompt_ids: Sequence[int], output_ids: Sequence[int]) -> str:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids)
    return "".join(map(detokenizer.step, output_ids)) + detokenizer.finish()


@kinds
@settings(deadline=None)
@given(prompt=texts, output=texts, has_bos=st.booleans())
def test_the_pieces_are_the_decoded_text_less_the_prompt(
    tokenizer: Tokenizer, prompt: str, output: str, has_bos: bool
) -> None:
    bos = [1] if has_bos else []
    prompt_ids = bos + tokenizer.encode(prompt)
    output_ids = tokenizer.encode(output)
    whole = tokenizer.decode(prompt_ids + output_ids)
    assert stream(tokenizer, prompt_ids, output_ids) == whole[len(tokenizer.decode(prompt_ids)) :]


@settings(deadline=None)
@given(st.lists(st.integers(0, BYTE_LEVEL.vocab_size + 3), max_size=40), st.integers(0, 40))
def test_any_tokens_at_all_give_the_text_of_the_library(ids: list[int], cut: int) -> None:
    prompt_ids, output_ids = ids[:cut], ids[cut:]
    before = IncrementalDetokenizer(BYTE_LEVEL, [])
    prompt_text = "".join(map(before.step, prompt_ids))
    assert prompt_text + stream(BYTE_LEVEL, prompt_ids, output_ids) == BYTE_LEVEL.decode(ids)


@kinds
@settings(deadline=None)
@given(data=st.data(), text=texts)
def test_a_sequence_that_moves_loses_no_text_and_doubles_none(
    tokenizer: Tokenizer, data: st.DataObject, text: str
) -> None:
    ids = tokenizer.encode(text)
    num_prompt = data.draw(st.integers(0, len(ids)))
    num_before = data.draw(st.integers(num_prompt, len(ids)))
    first = IncrementalDetokenizer(tokenizer, ids[:num_prompt])
    before = "".join(map(first.step, ids[num_prompt:num_before]))
    after = stream(tokenizer, ids[:num_before], ids[num_before:])
    assert before + after == stream(tokenizer, ids[:num_prompt], ids[num_prompt:])


@kinds
@settings(deadline=None)
@given(text=texts)
def test_the_same_tokens_give_the_same_pieces_again(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    first, again = (IncrementalDetokenizer(tokenizer, ids[:2]) for _ in range(2))
    assert [first.step(i) for i in ids] == [again.step(i) for i in ids]


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE])
def test_a_character_is_given_out_whole_and_as_soon_as_it_is_complete(
    tokenizer: Tokenizer,
) -> None:
    prompt_ids = tokenizer.encode("the fox")
    ids = tokenizer.encode("the fox🦊🦊")[len(prompt_ids) :]
    detokenizer = IncrementalDetokenizer(tokenizer, prompt_ids)
    whole = [*[""] * (len(ids) // 2 - 1), "🦊"]
    assert len(whole) > 2
    assert [detokenizer.step(i) for i in ids] == whole * 2
    assert detokenizer.finish() == ""


@pytest.mark.parametrize(
    ("tokenizer", "damaged"),
    [(BYTE_LEVEL, "\ufffd"), (SENTENCEPIECE, "\ufffd\ufffd\ufffd")],
)
def test_a_character_that_stays_incomplete_reads_as_in_the_library(
    tokenizer: Tokenizer, damaged: str
) -> None:
    prompt_ids = tokenizer.encode("the")
    ids = tokenizer.encode("the🦊")[len(prompt_ids) : -1]
    assert stream(tokenizer, prompt_ids, ids) == damaged
    assert tokenizer.decode(prompt_ids + ids) == "the" + damaged
    followed = [*ids, *tokenizer.encode("fox")]
    expected = tokenizer.decode(prompt_ids + followed).removeprefix("the")
    assert stream(tokenizer, prompt_ids, followed) == expected


def test_a_stray_byte_does_not_destroy_the_characters_that_were_already_sent() -> None:
    # The library would replace the whole run of byte tokens, also the fox.
    prompt_ids = SENTENCEPIECE.encode("the")
    ids = [*SENTENCEPIECE.encode("the🦊")[len(prompt_ids) :], SENTENCEPIECE.id_of("<0xFF>") or 0]
    assert stream(SENTENCEPIECE, prompt_ids, ids) == "🦊\ufffd"


@kinds
def test_special_and_unknown_tokens_have_no_text(tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer, tokenizer.encode("the"))
    ids = [1, 2, tokenizer.vocab_size + 5]
    assert [detokenizer.step(i) for i in ids] == ["", "", ""]
    assert tokenizer.vocab_size + 5 not in tokenizer.pieces.piece_by_id


def test_only_the_first_text_of_a_sequence_loses_its_space() -> None:
    fox = SENTENCEPIECE.encode("fox")
    assert stream(SENTENCEPIECE, [1], fox) == "fox"
    assert stream(SENTENCEPIECE, [1, *fox], fox) == " fox"


def test_an_added_token_that_is_not_special_reads_as_it_is_written() -> None:
    ids = BYTE_LEVEL.encode("a<tool call>b")
    assert stream(BYTE_LEVEL, [], ids) == "a<tool call>b"


@settings(deadline=None)
@given(st.text(st.characters(categories=["L", "M", "S", "Z"]), max_size=20))
def test_a_composed_text_stays_as_it_was_written(text: str) -> None:
    # Written out, a special token becomes one, and has no text.
    assume("<" not in text)
    decomposed = unicodedata.normalize("NFD", text)
    assert stream(BYTE_LEVEL, [], BYTE_LEVEL.encode(decomposed)) == decomposed


class CountedIds(list[int]):
    """Ids that count how often they are read."""

    num_reads = 0

    def __getitem__(self, key: Any) -> Any:
        self.num_reads += 1
        return super().__getitem__(key)


def test_a_long_prompt_costs_no_more_than_its_end() -> None:
    ids = CountedIds(BYTE_LEVEL.encode("the quick fox " * 1000 + "🦊")[:-1])
    IncrementalDetokenizer(BYTE_LEVEL, ids)
    assert 0 < ids.num_reads <= 6
