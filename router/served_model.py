"""The model as the router needs it: names, limits, tokenizer, chat template. No weights."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from engine.chat_template import ChatTemplate, require_template
from engine.config_json import GenerationDefaults, read_model_config
from engine.model_config import ModelConfig
from engine.model_folder import model_fingerprint
from engine.tokenizer import Tokenizer
from scheduling.errors import InvalidRequest, QueueFull, UnknownModel

# Tokenising the longest allowed prompt takes seconds; this is the bound on a stuck one.
_TOKENIZE_TIMEOUT_S = 60.0
# Prompts that may wait for a thread; they are not counted among the queued tasks yet.
_MAX_WAITING = 1024


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

    def text_of(self, token_id: int) -> str:
        """One token by itself; U+FFFD where it is a part of a character."""
        return self.tokenizer.decode([token_id], skip_special_tokens=False)

    def require_name(self, name: str) -> None:
        """Accept the empty name and our own. Raises: UnknownModel."""
        if name and name != self.name:
            raise UnknownModel(f"{name!r} is not served here; ask for {self.name!r}")


def load_served_model(
    folder: Path, name: str, max_chars: int, max_model_len: int | None = None
) -> ServedModel:
    """Read configuration, tokenizer and template; `max_model_len` may shorten the context.

    Raises: ModelFolderError.
    """
    config, defaults = read_model_config(folder)
    tokenizer = Tokenizer.from_folder(folder, max_chars=max_chars)
    template = ChatTemplate.from_folder(folder, tokenizer)
    own_length = config.max_position_embeddings
    return ServedModel(
        name=name,
        config=config,
        defaults=defaults,
        tokenizer=tokenizer,
        template=template,
        fingerprint=model_fingerprint(folder),
        context_length=min(own_length, max_model_len or own_length),
    )


class PromptEncoder:
    """Turns prompts into token ids on threads of its own, so that the event loop never waits."""

    def __init__(self, model: ServedModel, num_threads: int) -> None:
        self._model = model
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="tokenizer")
        self._num_waiting = 0

    async def encode(
        self,
        text: str | None,
        messages: Sequence[tuple[str, str]] | None,
        token_ids: tuple[int, ...] | None,
    ) -> tuple[int, ...]:
        """Ids of whichever form the prompt has. Raises: InvalidRequest, QueueFull."""
        if token_ids is not None:
            vocab_size = self._model.config.vocab_size
            if (largest := max(token_ids)) >= vocab_size:
                raise InvalidRequest(
                    "tokens", f"id {largest} is not in the vocabulary of {vocab_size}"
                )
            return token_ids
        if self._num_waiting >= _MAX_WAITING:
            raise QueueFull(f"{_MAX_WAITING} prompts wait to be tokenised; retry later")
        loop = asyncio.get_running_loop()
        self._num_waiting += 1
        try:
            work = loop.run_in_executor(self._threads, self._encode, text, messages)
            ids = await asyncio.wait_for(work, _TOKENIZE_TIMEOUT_S)
        except TimeoutError:
            problem = f"the prompt was not tokenised in {_TOKENIZE_TIMEOUT_S:g} s; retry later"
            raise QueueFull(problem) from None
        finally:
            self._num_waiting -= 1
        if not ids:
            raise InvalidRequest("prompt", "has no tokens; send some text")
        return ids

    def close(self) -> None:
        """Give the threads up; prompts still in work are dropped with their calls."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _encode(
        self, text: str | None, messages: Sequence[tuple[str, str]] | None
    ) -> tuple[int, ...]:
        if messages is None:
            assert text is not None
            return tuple(self._model.tokenizer.encode(text))
        template = require_template(self._model.template)
        rendered = template.render([{"role": role, "content": text} for role, text in messages])
        return tuple(self._model.tokenizer.encode(rendered, add_special_tokens=False))
