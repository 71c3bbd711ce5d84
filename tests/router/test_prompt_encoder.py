"""A text is tokenised for somebody who waits for it and has room for it, and only then."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from engine.bundled import bundled_model_path
from engine.tokenizer import Tokenizer
from engine.tokenizer_testing import sentencepiece_backend
from router.prompt_room import SHORT_BYTES, WORK_PER_ASCII_CHAR, PromptRoom
from router.served_model import PromptEncoder, ServedModel, load_served_model
from scheduling.errors import CanNeverFit, ContextTooLong, InvalidRequest, QueueFull

PATIENCE_S = 20.0
TEXT = "Once upon a time, there was a little fox. " * 5000
MIB = 1024 * 1024


class Watched(Tokenizer):
    """Says what it is given, and takes one piece for each time it is told to go on."""

    turns: threading.Semaphore
    has_begun: threading.Event
    given: list[str]
    is_free: bool

    def encode_pieces(
        self, text: str, ends: Sequence[int], *, add_special_tokens: bool = True
    ) -> Iterator[list[int]]:
        start = 0
        for end in ends:
            self.given.append(text[start:end])
            self.has_begun.set()
            assert self.is_free or self.turns.acquire(timeout=PATIENCE_S)
            yield self.encode(text[start:end], add_special_tokens=False)
            start = end


def watched(backend_of: Tokenizer, *, is_free: bool = False) -> Watched:
    tokenizer = Watched(backend_of._backend, {}, max_chars=10_000_000)
    tokenizer.turns, tokenizer.has_begun = threading.Semaphore(0), threading.Event()
    tokenizer.given, tokenizer.is_free = [], is_free
    return tokenizer


@pytest.fixture(scope="module")
def model() -> ServedModel:
    loaded = load_served_model(bundled_model_path(), "demo", max_chars=10_000_000)
    return replace(loaded, context_length=10_000_000)


@asynccontextmanager
async def encoder_of(
    model: ServedModel, room: PromptRoom | None = None
) -> AsyncIterator[PromptEncoder]:
    made = PromptEncoder(model, num_threads=1, room=room)
    try:
        yield made
    finally:
        made.close()


async def idle(encoder: PromptEncoder) -> None:
    """Until the thread of long texts has nothing to do."""
    await asyncio.wait_for(encoder.run(lambda: None, SHORT_BYTES + 1), PATIENCE_S)


async def begun(tokenizer: Watched) -> None:
    assert await asyncio.to_thread(tokenizer.has_begun.wait, PATIENCE_S)


async def test_who_leaves_while_others_are_tokenised_is_not_tokenised(model: ServedModel) -> None:
    tokenizer = watched(model.tokenizer)
    async with encoder_of(replace(model, tokenizer=tokenizer)) as encoder:
        first = asyncio.create_task(encoder.encode(TEXT, None, None))
        await begun(tokenizer)
        others = [asyncio.create_task(encoder.encode("other " + TEXT, None, None)) for _ in "12"]
        await asyncio.sleep(0)
        for other in others:
            other.cancel()
        tokenizer.is_free = True
        tokenizer.turns.release()
        assert await asyncio.wait_for(first, PATIENCE_S)
        await idle(encoder)
    assert not any(piece.startswith("other") for piece in tokenizer.given)


async def test_tokenising_ends_with_the_piece_in_which_its_caller_leaves(
    model: ServedModel,
) -> None:
    tokenizer = watched(model.tokenizer)
    async with encoder_of(replace(model, tokenizer=tokenizer)) as encoder:
        call = asyncio.create_task(encoder.encode(TEXT, None, None))
        await begun(tokenizer)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        tokenizer.is_free = True
        tokenizer.turns.release()
        await idle(encoder)
    assert len(tokenizer.given) == 1


async def test_who_leaves_in_the_moment_of_a_result_has_left(model: ServedModel) -> None:
    """Otherwise what comes next would be done for nobody."""
    go_on, is_next = threading.Event(), threading.Event()
    async with encoder_of(model) as encoder:
        call = asyncio.create_task(encoder.run(lambda: go_on.wait(PATIENCE_S), SHORT_BYTES + 1))
        behind = asyncio.create_task(encoder.run(is_next.set, SHORT_BYTES + 1))
        await asyncio.sleep(0)
        go_on.set()
        # Its result is on the way to the event loop, which has no turn yet.
        assert is_next.wait(PATIENCE_S)
        asyncio.get_running_loop().call_soon(call.cancel)
        with pytest.raises(asyncio.CancelledError):
            await call
        await behind


@pytest.mark.parametrize("is_chat", [False, True])
async def test_what_cannot_fit_into_the_context_is_refused_untokenised(
    model: ServedModel, is_chat: bool
) -> None:
    tokenizer = watched(model.tokenizer)
    longest = tokenizer.token_lengths.longest
    assert longest is not None
    small = replace(model, tokenizer=tokenizer, context_length=len(TEXT) // longest)
    async with encoder_of(small) as encoder:
        text, messages = (None, [("user", TEXT)]) if is_chat else (TEXT, None)
        with pytest.raises(ContextTooLong, match=r"at least 131\d\d tokens, .* context is 13125;"):
            await encoder.encode(text, messages, None)
    assert tokenizer.given == []


async def test_tokenising_ends_where_the_context_does(model: ServedModel) -> None:
    num_tokens = len(model.tokenizer.encode(TEXT))
    tokenizer = watched(model.tokenizer, is_free=True)
    small = replace(model, tokenizer=tokenizer, context_length=num_tokens // 2)
    async with encoder_of(small) as encoder:
        with pytest.raises(ContextTooLong, match=r"has at least \d+ tokens") as refused:
            await encoder.encode(TEXT, None, None)
        read = "".join(tokenizer.given)
        assert len(read) < 0.6 * len(TEXT)
        assert f" {len(model.tokenizer.encode(read)) - 1} tokens" in str(refused.value)
        # Who only asks for the ids gets them all.
        ids = await encoder.encode(TEXT, None, None, is_bounded=False)
    assert len(ids) == num_tokens - 1  # the one that says where a text begins is left out above


@pytest.mark.parametrize("num_tokens_too_many", [0, 1])
async def test_a_text_that_just_fits_is_let_in(
    model: ServedModel, num_tokens_too_many: int
) -> None:
    ids = tuple(model.tokenizer.encode(TEXT))
    small = replace(model, context_length=len(ids) + 1 - num_tokens_too_many)
    async with encoder_of(small) as encoder:
        if num_tokens_too_many:
            with pytest.raises(ContextTooLong):
                await encoder.encode(TEXT, None, None)
        else:
            assert await encoder.encode(TEXT, None, None) == ids


async def test_a_text_that_is_tokenised_whole_takes_room_until_the_thread_has_done_it(
    model: ServedModel,
) -> None:
    tokenizer = watched(Tokenizer(sentencepiece_backend(), {}))
    room = PromptRoom(60 + WORK_PER_ASCII_CHAR * len(TEXT) // MIB)
    whole = replace(model, tokenizer=tokenizer)
    async with encoder_of(whole, room) as encoder:
        call = asyncio.create_task(encoder.encode(TEXT, None, None))
        await begun(tokenizer)
        assert room.num_work_bytes == WORK_PER_ASCII_CHAR * len(TEXT)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        # Nobody waits for it any more, but it cannot be stopped.
        assert room.num_work_bytes == WORK_PER_ASCII_CHAR * len(TEXT)
        tokenizer.turns.release()
        await idle(encoder)
        await asyncio.sleep(0)
        assert room.num_work_bytes == 0
        with pytest.raises(CanNeverFit, match="this tokenizer takes it whole"):
            await encoder.encode(TEXT * 2, None, None)
        others = room.hold(8 * MIB)
        with pytest.raises(QueueFull, match="retry later"):
            await encoder.encode(TEXT, None, None)
        assert room.num_work_bytes == 0
        others.release()


async def test_pieces_are_put_together_to_the_same_ids(model: ServedModel) -> None:
    async with encoder_of(model) as encoder:
        assert await encoder.encode(TEXT, None, None) == tuple(model.tokenizer.encode(TEXT))
        assert model.template is not None
        rendered = model.template.render([{"role": "user", "content": TEXT}])
        ids = model.tokenizer.encode(rendered, add_special_tokens=False)
        assert await encoder.encode(None, [("user", TEXT)], None) == tuple(ids)


async def test_a_text_beyond_the_limit_of_characters_is_refused(model: ServedModel) -> None:
    async with encoder_of(model) as encoder:
        with pytest.raises(InvalidRequest, match="at most 10000000 are read"):
            await encoder.encode("a " * 5_000_001, None, None)


def test_the_bundled_model_is_one_whose_texts_are_cut(model: ServedModel) -> None:
    ends = model.tokenizer.ends_of_pieces(TEXT)
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert max(lengths) <= SHORT_BYTES
