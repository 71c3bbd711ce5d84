"""Chat messages to the one prompt text that the model was trained on, by its own Jinja template.

A template comes with the model and is run in a sandbox that cannot change what it is given. The
names it sees are those that transformers offers, so that published templates work unchanged.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.json_file import read_file, read_json_object
from engine.model_folder_errors import InvalidChatTemplate
from engine.tokenizer import TOKENIZER_CONFIG_FILE, Tokenizer
from runtime.clock import wall_time_ns
from scheduling.errors import InvalidRequest

TEMPLATE_FILE = "chat_template.jinja"
ROLES = ("system", "developer", "user", "assistant", "tool")

_FIELD = "messages"
# A template's own complaint may quote the conversation; its beginning says enough.
_MAX_COMPLAINT_CHARS = 200


class NoChatTemplate(InvalidRequest):
    """The model has no chat template: it was not trained on conversations."""

    def __init__(self) -> None:
        super().__init__(_FIELD, "this model has no chat template; send the prompt as text")


class UnknownRole(InvalidRequest):
    """A message is said by nobody that a conversation knows."""

    def __init__(self, index: int) -> None:
        super().__init__(_FIELD, f"message {index}: role must be one of {', '.join(ROLES)}")
        self.index = index


class InvalidMessage(InvalidRequest):
    """A message, or the list of them, has a shape that no template can read."""

    def __init__(self, problem: str) -> None:
        super().__init__(_FIELD, problem)


class ChatTemplateRefused(InvalidRequest):
    """The template stopped: by its own word, or because it cannot read these messages."""

    def __init__(self, complaint: str) -> None:
        super().__init__(
            _FIELD,
            f"the model's chat template refused them ({complaint[:_MAX_COMPLAINT_CHARS]}); "
            "send the roles and contents that this model expects",
        )


class ChatTemplate:
    """A compiled template; any thread may render it at any time."""

    def __init__(
        self,
        template: jinja2.Template,
        special_token_by_name: Mapping[str, str],
    ) -> None:
        self._template = template
        self._special_token_by_name = dict(special_token_by_name)

    @classmethod
    def from_source(
        cls,
        source: str,
        special_token_by_name: Mapping[str, str],
        now: Callable[[], datetime] | None = None,
    ) -> "ChatTemplate":
        """Compile a template; `now` answers its questions for today's date.

        Raises: jinja2.TemplateError when it is not valid.
        """
        environment = _environment(now or _local_time)
        return cls(environment.from_string(source), special_token_by_name)

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        tokenizer: Tokenizer,
        now: Callable[[], datetime] | None = None,
    ) -> "ChatTemplate | None":
        """The template of a model folder; None where the model has none.

        Raises: InvalidChatTemplate, InvalidModelJson, ModelFileMissing.
        """
        found = _find_source(Path(path))
        if found is None:
            return None
        file, source = found
        try:
            return cls.from_source(source, tokenizer.special_token_by_name, now)
        except jinja2.TemplateError as error:
            raise InvalidChatTemplate(file, f"is not a valid template ({error})") from None

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True
    ) -> str:
        """The prompt text; encode it with add_special_tokens=False, it already holds them.

        Raises: InvalidMessage, UnknownRole, ChatTemplateRefused.
        """
        conversation = _checked(messages)
        try:
            return self._template.render(
                messages=conversation,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_token_by_name,
            )
        except _Complaint as complaint:
            raise ChatTemplateRefused(str(complaint)) from None
        # A template is a program of the model's authors and may fail in any way. The text of
        # other errors may quote the conversation, their kind does not.
        except Exception as error:
            raise ChatTemplateRefused(type(error).__name__) from None


def require_template(template: ChatTemplate | None) -> ChatTemplate:
    """The template, where the model has one.

    Raises: NoChatTemplate.
    """
    if template is None:
        raise NoChatTemplate
    return template


class _Complaint(jinja2.TemplateError):
    """What a template passed to raise_exception."""


class _GenerationBlock(Extension):
    """Training templates mark the assistant's words with a tag; for a prompt it means nothing."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it as a plain set

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _complain
    # Templates may name the argument, so it must have this name.
    environment.globals["strftime_now"] = lambda format: now().strftime(format)  # noqa: A006
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, which would change the prompt.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _complain(message: str) -> str:
    raise _Complaint(message)


def _local_time() -> datetime:
    return datetime.fromtimestamp(wall_time_ns() / 1e9)


def _find_source(folder: Path) -> tuple[Path, str] | None:
    """A file of its own wins over the field of tokenizer_config.json, as in transformers."""
    file = folder / TEMPLATE_FILE
    if file.is_file():
        try:
            return file, read_file(file).decode()
        except UnicodeDecodeError:
            raise InvalidChatTemplate(file, "is not UTF-8 text") from None
    file = folder / TOKENIZER_CONFIG_FILE
    field = read_json_object(file).get("chat_template") if file.is_file() else None
    match field:
        case None:
            return None
        case str():
            return file, field
        case [*entries]:
            for entry in entries:
                match entry:
                    case {"name": "default", "template": str(source)}:
                        return file, source
    raise InvalidChatTemplate(file, "has a chat_template that names no default template")


def _checked(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if not messages:
        raise InvalidMessage("the list is empty; send at least one message")
    for index, message in enumerate(messages):
        if message.get("role") not in ROLES:
            raise UnknownRole(index)
        if not isinstance(message.get("content"), str | list | None):
            raise InvalidMessage(f"message {index}: content must be text or a list of parts")
    # Templates test for presence, so an absent value and None must look alike.
    return [{k: v for k, v in message.items() if v is not None} for message in messages]
