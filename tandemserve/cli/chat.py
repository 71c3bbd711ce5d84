"""`tandem chat`: a conversation, or one question."""

import sys
import uuid
from typing import TYPE_CHECKING, Annotated

import typer

from tandemserve.cli.answers import show_json, show_stats, show_text
from tandemserve.cli.exit_codes import ExitCode, error_line
from tandemserve.cli.option_groups import AsJson, ConnectionOptions, GenerationOptions, expanded
from tandemserve.cli.output import note
from tandemserve.errors import TandemError
from tandemserve.options import ChatMessage, GenerateOptions

if TYPE_CHECKING:
    from tandemserve.client import Client


@expanded
def chat(
    connection: ConnectionOptions,
    generation: GenerationOptions,
    message: Annotated[
        str | None, typer.Argument(help="One question; without it a conversation begins.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Timings to stderr.")] = False,
    as_json: AsJson = False,
) -> None:
    """Talk to a model that has a chat template.

    Ctrl-C cancels the answer being written, twice leaves; so does Ctrl-D.

    Examples:

      tandem chat

      tandem chat "What is a KV cache?" --max-tokens 100

      tandem chat --system "Answer in one word." --temperature 0

      tandem chat --min-p 0.05 --presence-penalty 0.5 --seed 7
    """
    options = generation.as_options()
    options["session"] = options.get("session") or uuid.uuid4().hex
    with connection.open() as client:
        conversation = Conversation(client, options, as_json=as_json, stats=stats)
        if system is not None:
            conversation.messages.append(ChatMessage("system", system))
        if message is not None:
            conversation.ask(message)
        else:
            converse(conversation)


class Conversation:
    """The turns so far. A turn that failed before its first word leaves no trace."""

    def __init__(
        self, client: "Client", options: GenerateOptions, *, as_json: bool, stats: bool
    ) -> None:
        self.messages: list[ChatMessage] = []
        self._client = client
        self._options = options
        self._as_json = as_json
        self._stats = stats

    def ask(self, text: str) -> None:
        """Show the answer and remember it, or as much of it as arrived. Raises: TandemError."""
        self.messages.append(ChatMessage("user", text))
        pieces: list[str] = []
        try:
            with self._client.stream_chat(self.messages, **self._options) as stream:
                if self._as_json:
                    show_json(stream)
                    pieces.append(stream.completion().text)
                else:
                    show_text(stream, pieces)
                if self._stats:
                    show_stats(stream.completion())
        finally:
            if pieces:
                self.messages.append(ChatMessage("assistant", "".join(pieces)))
            else:
                self.messages.pop()


def converse(conversation: Conversation) -> None:
    """Read lines until the end of the input, or two Ctrl-C in a row."""
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if is_terminal:
        _enable_line_editing()
        note("Ctrl-D leaves, Ctrl-C cancels an answer.")
    was_interrupted = False
    while True:
        try:
            line = _read_line(is_terminal)
            if line is None:
                return
            if not line.strip():
                continue
            was_interrupted = False
            conversation.ask(line)
        except KeyboardInterrupt:
            if was_interrupted:
                raise typer.Exit(ExitCode.INTERRUPTED) from None
            was_interrupted = True
            note("\ncancelled; Ctrl-C again or Ctrl-D leaves")
        except TandemError as error:
            if not is_terminal:
                raise
            note(error_line(error, is_generation=True))


def _read_line(is_terminal: bool) -> str | None:
    """The next line without its end; None at the end of the input."""
    if not is_terminal:
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    try:
        return input("> ")
    except EOFError:
        print()
        return None


def _enable_line_editing() -> None:
    try:
        import readline  # noqa: F401  input() uses it once it is imported
    except ImportError:
        note("no readline on this system: no history")
