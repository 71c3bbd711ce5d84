"""Text and stop decisions of running sequences, whatever tokens the text is cut into."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.tokenizer import Tokenizer
from engine.tokenizer_testing import byte_level_backend, write_tokenizer
from scheduling.sampling import SamplingParams, StopParams, TokenLogprobs
from scheduling.step import SequenceStart, StepResult
from scheduling.worker_events import SampledOutput
from worker.output_text import OutputText

PROMPT = "the quick brown fox "
END_ID = 2
# Pieces of one and of several bytes of a character, and of stop strings.
WORDS = ("the dog", " answers", "né", "世界", "STOP", "ST", "O", "P", " ", "🎉")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, byte_level_backend())
    return Tokenizer.from_folder(folder)


PLAIN = SamplingParams()


def start_of(
    prompt: list[int], output: list[int], slot: int = 0, sampling: SamplingParams = PLAIN
) -> SequenceStart:
    return SequenceStart(slot, (*prompt, *output), len(prompt), sampling, ())


def feed(text: OutputText, tokens: list[int], slot: int = 0) -> list[SampledOutput]:
    """Sample these one by one, until the sequence ends."""
    outputs: list[SampledOutput] = []
    for token_id in tokens:
        outputs += text.process(StepResult((slot,), (token_id,)))
        if outputs[-1].finish_reason is not None:
            break
    return outputs


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def generate(
    tokenizer: Tokenizer,
    tokens: list[int],
    stop: StopParams,
    sampling: SamplingParams = PLAIN,
) -> list[SampledOutput]:
    text = OutputText(tokenizer)
    text.load(start_of(list(tokenizer.encode(PROMPT)), [], sampling=sampling), stop)
    return feed(text, tokens)


def joined(outputs: list[SampledOutput]) -> str:
    return "".join(output.text for output in outputs)


def test_the_pieces_are_the_text(tokenizer: Tokenizer) -> None:
    answer = "jumps over 世界 and naïve 🎉 dogs"
    tokens = list(tokenizer.encode(answer, add_special_tokens=False))
    outputs = generate(tokenizer, tokens, StopParams(len(tokens)))
    assert joined(outputs) == answer
    assert [o.finish_reason for o in outputs] == [None] * (len(tokens) - 1) + ["length"]
    assert len(tokens) > len("🎉".encode())


def test_max_tokens_ends_with_what_was_held_back(tokenizer: Tokenizer) -> None:
    tokens = list(tokenizer.encode("a dog ST", add_special_tokens=False))
    outputs = generate(tokenizer, tokens, StopParams(len(tokens), (), ("STOP",)))
    assert joined(outputs) == "a dog ST"
    assert (outputs[-1].finish_reason, outputs[-1].matched_stop) == ("length", None)
    assert not outputs[-2].text.endswith("S")


def test_a_stop_string_across_tokens_is_never_seen(tokenizer: Tokenizer) -> None:
    tokens = list(tokenizer.encode("the dog STOP here", add_special_tokens=False))
    outputs = generate(tokenizer, tokens, StopParams(99, (), ("STOP",)))
    assert joined(outputs) == "the dog "
    assert (outputs[-1].finish_reason, outputs[-1].matched_stop) == ("stop", "STOP")
    assert len(outputs) < len(tokens)


def test_a_stop_string_that_is_complete_with_the_last_token_wins_over_the_length(
    tokenizer: Tokenizer,
) -> None:
    tokens = list(tokenizer.encode("x STOP", add_special_tokens=False))
    outputs = generate(tokenizer, tokens, StopParams(len(tokens), (), ("STOP",)))
    assert joined(outputs) == "x "
    assert (outputs[-1].finish_reason, outputs[-1].matched_stop) == ("stop", "STOP")


def test_a_stop_id_ends_the_sequence_without_text_of_its_own(tokenizer: Tokenizer) -> None:
    tokens = [*tokenizer.encode("a dog ST", add_special_tokens=False), END_ID, 65]
    outputs = generate(tokenizer, tokens, StopParams(99, (END_ID,), ("STOP",)))
    assert joined(outputs) == "a dog ST", "held-back text comes with the end"
    assert outputs[-1].token_id == END_ID
    assert (outputs[-1].finish_reason, outputs[-1].matched_stop) == ("stop", END_ID)


def test_an_incomplete_character_at_the_end_is_replaced(tokenizer: Tokenizer) -> None:
    tokens = list(tokenizer.encode("🎉", add_special_tokens=False))
    assert len(tokens) > 1, "the test needs a character of several tokens"
    outputs = generate(tokenizer, tokens[:-1], StopParams(len(tokens) - 1))
    assert joined(outputs) == "\ufffd"
    assert outputs[-1].finish_reason == "length"


def test_logprobs_go_with_their_tokens(tokenizer: Tokenizer) -> None:
    text = OutputText(tokenizer)
    for slot in (0, 1):
        text.load(start_of([65], [], slot), StopParams(9))
    logprobs = (None, TokenLogprobs(-1.0, ((66, -1.0),)))
    first, second = text.process(StepResult((1, 0), (66, 67), logprobs))
    assert (first.slot, first.logprobs) == (1, None)
    assert (second.slot, second.logprobs) == (0, logprobs[1])


def test_a_slot_is_free_again_after_its_sequence_left(tokenizer: Tokenizer) -> None:
    text = OutputText(tokenizer)
    text.load(start_of([65], []), StopParams(9, (), ("STOP",)))
    feed(text, list(tokenizer.encode("ST", add_special_tokens=False)))
    text.drop(0)
    text.load(start_of([65], []), StopParams(9))
    tokens = list(tokenizer.encode("OP", add_special_tokens=False))
    assert joined(feed(text, tokens)) == "OP", "nothing of the earlier sequence is left"


@pytest.mark.parametrize("num_early", [0, 2, 3])
def test_nothing_ends_a_sequence_before_it_has_min_tokens(
    tokenizer: Tokenizer, num_early: int
) -> None:
    words = ("STOP", "x", "STOP", " né", "STOP", "rest")
    pieces = [list(tokenizer.encode(word, add_special_tokens=False)) for word in words]
    tokens = [token_id for piece in pieces for token_id in piece]
    text = OutputText(tokenizer)
    sampling = SamplingParams(min_tokens=sum(map(len, pieces[:num_early])))
    start = start_of(list(tokenizer.encode(PROMPT)), [], sampling=sampling)
    text.load(start, StopParams(99, (), ("STOP",)))
    outputs = feed(text, tokens)
    assert joined(outputs) == {0: "", 2: "STOPx", 3: "STOPxSTOP né"}[num_early]
    assert outputs[-1].matched_stop == "STOP"


def test_a_stop_string_that_began_too_early_is_none(tokenizer: Tokenizer) -> None:
    """Its first part was sent already: it is text like any other."""
    tokens = [
        token_id for part in ("ST", "OP", "ST", "OP") for token_id in encoded(tokenizer, part)
    ]
    text = OutputText(tokenizer)
    sampling = SamplingParams(min_tokens=len(encoded(tokenizer, "ST")), end_token_ids=(END_ID,))
    start = start_of(list(tokenizer.encode(PROMPT)), [], sampling=sampling)
    text.load(start, StopParams(99, (END_ID,), ("STOP",)))
    assert joined(feed(text, tokens)) == "STOP"


def test_an_answer_of_min_tokens_and_no_more_ends_by_its_length(tokenizer: Tokenizer) -> None:
    tokens = encoded(tokenizer, "STOP")
    text = OutputText(tokenizer)
    sampling = SamplingParams(min_tokens=len(tokens))
    start = start_of(list(tokenizer.encode(PROMPT)), [], sampling=sampling)
    text.load(start, StopParams(len(tokens), (), ("STOP",)))
    outputs = feed(text, tokens)
    assert (joined(outputs), outputs[-1].finish_reason) == ("STOP", "length")


@settings(deadline=None, max_examples=200)
@given(
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=10),
    cuts=st.lists(st.integers(0, 60), max_size=3),
    with_stop=st.booleans(),
    spare=st.integers(0, 3),
    min_tokens=st.sampled_from([0, 0, 4]),
)
def test_a_sequence_that_moves_goes_on_with_the_very_next_character(
    tokenizer: Tokenizer,
    words: list[str],
    cuts: list[int],
    with_stop: bool,
    spare: int,
    min_tokens: int,
) -> None:
    """After any token another worker may be given prompt and output so far."""
    tokens = list(tokenizer.encode("".join(words), add_special_tokens=False))
    stop = StopParams(len(tokens) + spare, (), ("STOP",) if with_stop else ())
    sampling = SamplingParams(min_tokens=min(min_tokens, len(tokens)))
    whole = generate(tokenizer, tokens, stop, sampling)
    prompt = list(tokenizer.encode(PROMPT))
    moved: list[SampledOutput] = []
    borders = sorted({0, *(cut for cut in cuts if cut < len(whole))})
    for begin, end in zip(borders, [*borders[1:], len(tokens)], strict=True):
        text = OutputText(tokenizer)
        text.load(start_of(prompt, tokens[:begin], sampling=sampling), stop)
        moved += feed(text, tokens[begin:end])
    assert moved == whole
