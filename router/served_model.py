"""The model as the router needs it: names, limits, tokenizer, chat template. No weights."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

from engine.chat_template import ChatTemplate, require_template
from engine.config_json import GenerationDefaults, read_model_config
from engine.model_config import ModelConfig
from engine.model_folder import model_fingerprint
from engine.tokenizer import Tokenizer
from router.prompt_room import SHORT_BYTES
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
    config: ModelConfig
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

    def require_room(self, num_prompt_tokens: int) -> None:
        """At least one token of answer must fit behind the prompt. Raises: ContextTooLong."""
        if num_prompt_tokens >= self.context_length:
            raise ContextTooLong(
                f"the prompt has {num_prompt_tokens} tokens, the model's context is "
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


class PromptEncoder:
    """Turns prompts into token ids on threads of its own, so that the event loop never waits.

    Short prompts have a thread that long ones never get: they do not wait behind megabytes.
    """

    def __init__(self, model: ServedModel, num_threads: int) -> None:
        self._model = model
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
    ) -> tuple[int, ...]:
        """Ids of whichever form the prompt has. Raises: InvalidRequest, QueueFull."""
        if token_ids is not None:
            # Before anything is done with a prompt of any length.
            self._model.require_room(len(token_ids))
            if len(token_ids) <= _IDS_AT_ONCE:
                return self._own(token_ids)
            return await self.run(lambda: self._own(token_ids), len(token_ids))
        num_chars = len(text) if text is not None else sum(len(m[1]) for m in messages or ())
        if text is not None and num_chars <= _MAX_CHARS_AT_ONCE:
            return _some(self._encode(text, None))
        return _some(await self.run(lambda: self._encode(text, messages), num_chars))

    async def prefix(
        self, token_ids: tuple[int, ...], cache_salt: str, block_sizes: Iterable[int]
    ) -> PromptPrefix:
        """The names of the prompt's blocks; those of a long one are computed on a thread."""
        prefix = PromptPrefix(token_ids, cache_salt)
        if len(token_ids) >= _LONG_PROMPT:
            for block_size in block_sizes:
                await self.run(partial(prefix.keys, block_size), len(token_ids))
        return prefix

    async def run(self, work: Callable[[], Result], num_bytes: int) -> Result:
        """Do on a thread what is done with that much of a prompt. Raises: QueueFull."""
        threads = self._short_thread if num_bytes <= SHORT_BYTES else self._threads
        if self._num_waiting[threads] >= _MAX_WAITING:
            raise QueueFull(f"{_MAX_WAITING} prompts wait to be tokenised; retry later")
        self._num_waiting[threads] += 1
        try:
            done = asyncio.get_running_loop().run_in_executor(threads, work)
            return await asyncio.wait_for(done, _TOKENIZE_TIMEOUT_S)
        except TimeoutError:
            problem = f"the prompt was not tokenised in {_TOKENIZE_TIMEOUT_S:g} s; retry later"
            raise QueueFull(problem) from None
        finally:
            self._num_waiting[threads] -= 1

    def _own(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The same ids as shared objects, piece by piece, so that other threads get their turns."""
        ids: list[int] = []
        for start in range(0, len(token_ids), _IDS_AT_ONCE):
            piece = token_ids[start : start + _IDS_AT_ONCE]
            try:
                # One call for all of them: half the time of one for each. Of one id it would
                # not make a tuple.
                ids += itemgetter(0, *piece)(self._shared_ids)[1:]
            except IndexError:
                problem = f"is not in the vocabulary of {len(self._shared_ids)}"
                raise InvalidRequest("tokens", f"id {max(piece)} {problem}") from None
        return tuple(ids)

    def close(self) -> None:
        """Give the threads up; prompts still in work are dropped with their calls."""
        for threads in (self._threads, self._short_thread):
            threads.shutdown(wait=False, cancel_futures=True)

    def _encode(
        self, text: str | None, messages: Sequence[tuple[str, str]] | None
    ) -> tuple[int, ...]:
        if messages is None:
            assert text is not None
            return self._own(self._model.tokenizer.encode(text))
        template = require_template(self._model.template)
        rendered = template.render([{"role": role, "content": text} for role, text in messages])
        return self._own(self._model.tokenizer.encode(rendered, add_special_tokens=False))


def _some(ids: tuple[int, ...]) -> tuple[int, ...]:
    if not ids:
        raise InvalidRequest("prompt", "has no tokens; send some text")
    return ids
