"""The model as the router needs it: names, limits, tokenizer, chat template. No weights."""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, TypeVar

from engine.chat_template import ChatTemplate, require_template
from engine.config_json import GenerationDefaults, read_model_config
from engine.model_config import ModelShape
from engine.model_folder import model_fingerprint
from engine.tokenizer import Tokenizer
from router.prompt_room import SHORT_BYTES, PromptRoom, Work
from runtime.logging import get_logger
from scheduling.errors import ContextTooLong, InvalidRequest, QueueFull, UnknownModel
from scheduling.prefix_chain import PromptPrefix

log = get_logger()

# Tokenising the longest allowed prompt takes seconds; this is the bound on a stuck one.
_TOKENIZE_TIMEOUT_S = 60.0
# Naming the blocks of so many tokens takes a tenth of a millisecond.
_LONG_PROMPT = 1024
# Shorter texts are tokenised on the event loop: that takes 0.1 ms, as does the way to a thread.
_MAX_CHARS_AT_ONCE = 512
# Prompts that may wait for a thread; they are not counted among the queued tasks yet.
_MAX_WAITING = 1024
# Token ids that are converted in one go, in less than a millisecond.
_IDS_AT_ONCE = 4096

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Everything about the model that does not need its weights."""

    name: str
    config: ModelShape
    defaults: GenerationDefaults
    tokenizer: Tokenizer
    template: ChatTemplate | None
    fingerprint: str
    # Prompt plus answer at most, in tokens.
    context_length: int
    # What `text_of` was asked already: logprobs name the same few tokens again and again.
    _text_by_id: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def text_of(self, token_id: int) -> str:
        """One token by itself; U+FFFD where it is a part of a character."""
        text = self._text_by_id.get(token_id)
        if text is None:
            text = self.tokenizer.decode([token_id], skip_special_tokens=False)
            self._text_by_id[token_id] = text
        return text

    def require_room(self, num_prompt_tokens: int, *, is_least: bool = False) -> None:
        """At least one token of answer must fit behind the prompt. Raises: ContextTooLong.

        `is_least`: the prompt may have more tokens.
        """
        if num_prompt_tokens >= self.context_length:
            number = f"at least {num_prompt_tokens}" if is_least else f"{num_prompt_tokens}"
            raise ContextTooLong(
                f"the prompt has {number} tokens, the model's context is "
                f"{self.context_length}; shorten the prompt",
                field="prompt",
            )

    def require_name(self, name: str) -> None:
        """Accept the empty name and our own. Raises: UnknownModel."""
        if name and name != self.name:
            raise UnknownModel(f"{name!r} is not served here; ask for {self.name!r}")


def load_served_model(
    folder: Path, name: str, max_chars: int, max_model_len: int | None = None
) -> ServedModel:
    """Read configuration, tokenizer and template; `max_model_len` may shorten the context.

    Says in a log line what whoever serves the model should know.
    Raises: ModelFolderError.
    """
    config, defaults = read_model_config(folder, max_model_len)
    for remark in config.remarks:
        log.warning("model_remark", model=name, remark=remark)
    tokenizer = Tokenizer.from_folder(folder, max_chars=max_chars)
    template = ChatTemplate.from_folder(folder, tokenizer)
    own_length = config.max_position_embeddings
    return ServedModel(
        name=name,
        config=config,
        defaults=defaults,
        tokenizer=tokenizer,
        template=template,
        fingerprint=model_fingerprint(folder, config.rope_choice),
        context_length=min(own_length, max_model_len or own_length),
    )


class _Text(NamedTuple):
    """A text that is ready for the tokenizer."""

    text: str
    # Of the pieces that are tokenised one after the other.
    ends: list[int]
    adds_special_tokens: bool
    # Whether it must leave room in the model's context.
    is_bounded: bool

    @property
    def longest_piece(self) -> int:
        """In characters."""
        return max(end - start for start, end in zip([0, *self.ends], self.ends, strict=False))


class PromptEncoder:
    """Turns prompts into token ids on threads of its own, so that the event loop never waits.

    Short prompts have a thread that long ones never get: they do not wait behind megabytes.
    """

    def __init__(
        self, model: ServedModel, num_threads: int, room: PromptRoom | None = None
    ) -> None:
        self._model = model
        self._room = room or PromptRoom(num_threads=num_threads)
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenizer")
        self._short_thread = ThreadPoolExecutor(1, thread_name_prefix="short-tokenizer")
        # For each of the two.
        self._num_waiting = Counter[ThreadPoolExecutor]()
        # One object for each id: an int of its own for every token of every prompt would take
        # four times the memory of the prompt.
        self._shared_ids = tuple(range(model.config.vocab_size))

    async def encode(
        self,
        text: str | None,
        messages: Sequence[tuple[str, str]] | None,
        token_ids: Sequence[int] | None,
        *,
        is_bounded: bool = True,
    ) -> tuple[int, ...]:
        """Ids of whichever form the prompt has.

        Raises: InvalidRequest, ContextTooLong as soon as it is known unless `is_bounded` is False;
            QueueFull, CanNeverFit where tokenising finds no room.
        """
        if token_ids is not None:
            # Before anything is done with a prompt of any length.
            self._model.require_room(len(token_ids))
            if len(token_ids) <= _IDS_AT_ONCE:
                return self._own(token_ids)
            return await self.run(lambda: self._own(token_ids), len(token_ids))
        num_chars = len(text) if text is not None else sum(len(m[1]) for m in messages or ())
        nobody_waits = threading.Event()

        def prepare() -> _Text:
            return self._prepared(text, messages, is_bounded=is_bounded)

        def encode() -> tuple[int, ...]:
            return self._encode(prepare(), nobody_waits)

        if text is not None and num_chars <= _MAX_CHARS_AT_ONCE:
            return _some(encode())
        try:
            if num_chars <= SHORT_BYTES:
                return _some(await self.run(encode, num_chars))
            ready = await self.run(prepare, num_chars)
            encode_it = partial(self._encode, ready, nobody_waits)
            return _some(await self.run(encode_it, num_chars, partial(self._work_on, ready)))
        finally:
            # By an end, the deadline, or because the caller has left.
            nobody_waits.set()

    async def prefix(
        self, token_ids: tuple[int, ...], cache_salt: str, block_sizes: Iterable[int]
    ) -> PromptPrefix:
        """The names of the prompt's blocks; those of a long one are computed on a thread."""
        prefix = PromptPrefix(token_ids, cache_salt)
        if len(token_ids) >= _LONG_PROMPT:
            for block_size in block_sizes:
                await self.run(partial(prefix.keys, block_size), len(token_ids))
        return prefix

    async def run(
        self,
        work: Callable[[], Result],
        num_bytes: int,
        room: Callable[[], Work] | None = None,
    ) -> Result:
        """Do on a thread what is done with that much of a prompt; not begun for who has left.

        `room` is taken before, and given back when the thread is done with it.
        Raises: QueueFull, and what `work` and `room` raise.
        """
        threads = self._short_thread if num_bytes <= SHORT_BYTES else self._threads
        if self._num_waiting[threads] >= _MAX_WAITING:
            raise QueueFull(f"{_MAX_WAITING} prompts wait to be tokenised; retry later")
        taken = None if room is None else room()
        self._num_waiting[threads] += 1
        try:
            future = threads.submit(work)
            if taken is not None:
                loop, done = asyncio.get_running_loop(), taken.done
                future.add_done_callback(lambda _: _tell(loop, done))
            # Not wait_for: up to Python 3.11 it drops a cancellation that comes with the result.
            async with asyncio.timeout(_TOKENIZE_TIMEOUT_S):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            problem = f"the prompt was not tokenised in {_TOKENIZE_TIMEOUT_S:g} s; retry later"
            raise QueueFull(problem) from None
        finally:
            self._num_waiting[threads] -= 1

    def _own(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The same ids as shared objects, piece by piece, so that other threads get their turns."""
        ids: list[int] = []
        self._add(ids, token_ids)
        return tuple(ids)

    def _add(self, ids: list[int], token_ids: Sequence[int]) -> None:
        for start in range(0, len(token_ids), _IDS_AT_ONCE):
            piece = token_ids[start : start + _IDS_AT_ONCE]
            try:
                # One call for all of them: half the time of one for each. Of one id it would
                # not make a tuple.
                ids += itemgetter(0, *piece)(self._shared_ids)[1:]
            except IndexError:
                problem = f"is not in the vocabulary of {len(self._shared_ids)}"
                raise InvalidRequest("tokens", f"id {max(piece)} {problem}") from None

    def close(self) -> None:
        """Give the threads up; prompts still in work are dropped with their calls."""
        for threads in (self._threads, self._short_thread):
            threads.shutdown(wait=False, cancel_futures=True)

    def _work_on(self, ready: _Text) -> Work:
        text = ready.text
        return self._room.work_on(len(text), ready.longest_piece, is_ascii=text.isascii())

    def _prepared(
        self, text: str | None, messages: Sequence[tuple[str, str]] | None, *, is_bounded: bool
    ) -> _Text:
        adds_special_tokens = messages is None
        if messages is not None:
            template = require_template(self._model.template)
            text = template.render([{"role": role, "content": said} for role, said in messages])
        assert text is not None
        tokenizer = self._model.tokenizer
        ends = tokenizer.ends_of_pieces(text)
        if is_bounded and len(text) > SHORT_BYTES:
            # What cannot fit is not tokenised at all.
            self._model.require_room(tokenizer.token_lengths.fewest(text), is_least=True)
        return _Text(text, ends, adds_special_tokens, is_bounded)

    def _encode(self, ready: _Text, nobody_waits: threading.Event) -> tuple[int, ...]:
        ids: list[int] = []
        pieces = self._model.tokenizer.encode_pieces(
            ready.text, ready.ends, add_special_tokens=ready.adds_special_tokens
        )
        for piece in pieces:
            if nobody_waits.is_set():
                raise _NobodyWaitsError
            self._add(ids, piece)
            if ready.is_bounded:
                self._model.require_room(len(ids), is_least=len(ready.ends) > 1)
        return tuple(ids)


class _NobodyWaitsError(Exception):
    """Ends work whose result nobody takes; nobody sees it either."""


def _tell(loop: asyncio.AbstractEventLoop, done: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop has ended, and the process with it
        loop.call_soon_threadsafe(done)


def _some(ids: tuple[int, ...]) -> tuple[int, ...]:
    if not ids:
        raise InvalidRequest("prompt", "has no tokens; send some text")
    return ids
