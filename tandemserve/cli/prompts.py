"""Where the text of a command comes from: an argument, a file or stdin."""

import sys
from pathlib import Path
from typing import Annotated

import typer

PromptArgument = Annotated[
    str | None, typer.Argument(metavar="[PROMPT]", help="The text; - reads stdin.")
]
PromptFile = Annotated[
    Path | None,
    typer.Option("--file", "-f", exists=True, dir_okay=False, help="Read the text from a file."),
]


def read_prompt(argument: str | None, file: Path | None) -> str:
    """Raises: typer.BadParameter when there is not exactly one source, or it is not UTF-8."""
    if (argument is None) == (file is None):
        raise typer.BadParameter("give a PROMPT, - for stdin, or --file, and only one of them")
    if file is not None:
        return _decoded(file.read_bytes(), str(file))
    if argument == "-":
        return _decoded(sys.stdin.buffer.read(), "stdin")
    return argument or ""


def _decoded(content: bytes, source: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise typer.BadParameter(
            f"{source} is not UTF-8 (byte {error.start}); convert it first"
        ) from None
