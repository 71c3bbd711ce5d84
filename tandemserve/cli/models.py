"""`tandem models` and `tandem tokenize`: what is served, and how it reads text."""

from typing import Annotated

import typer

from tandemserve.cli.option_groups import AsJson, ConnectionOptions, expanded
from tandemserve.cli.output import print_json, print_table
from tandemserve.cli.prompts import PromptArgument, PromptFile, read_prompt

_COLUMNS = (
    "model",
    "architecture",
    "context_length",
    "max_request_tokens",
    "vocab_size",
    "has_chat_template",
)


@expanded
def models(connection: ConnectionOptions, as_json: AsJson = False) -> None:
    """List the models served, with their limits.

    Examples:

      tandem models

      tandem models --json | jq -r '.[].model'
    """
    with connection.open() as client:
        infos = [client.model_info(name) for name in client.list_models()]
    if as_json:
        print_json(infos)
    else:
        rows = [[getattr(info, column) for column in _COLUMNS] for info in infos]
        print_table("Models", _COLUMNS, rows)


@expanded
def tokenize(
    connection: ConnectionOptions,
    prompt: PromptArgument = None,
    file: PromptFile = None,
    model: Annotated[str, typer.Option(help="Model; the only one by default.")] = "",
    as_json: AsJson = False,
) -> None:
    """Print the token ids of a text.

    Examples:

      tandem tokenize "Hello world"

      tandem tokenize --file page.txt --json | jq .num_tokens
    """
    text = read_prompt(prompt, file)
    with connection.open() as client:
        token_ids = client.tokenize(text, model=model)
    if as_json:
        print_json({"num_tokens": len(token_ids), "token_ids": token_ids})
    else:
        print(*token_ids)
