"""`tandem generate`: one prompt, one streamed answer."""

from typing import Annotated

import typer

from tandemserve.cli.answers import (
    show_each_answer,
    show_json,
    show_logprobs,
    show_stats,
    show_text,
)
from tandemserve.cli.option_groups import AsJson, ConnectionOptions, GenerationOptions, expanded
from tandemserve.cli.prompts import PromptArgument, PromptFile, read_prompt


@expanded
def generate(
    connection: ConnectionOptions,
    generation: GenerationOptions,
    prompt: PromptArgument = None,
    file: PromptFile = None,
    n: Annotated[int | None, typer.Option("-n", help="How many answers, 1 to 16.")] = None,
    request_id: Annotated[
        str | None, typer.Option(help="Repeating a call with the same id attaches to it.")
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            help="Logprobs and so many alternatives per token, 0 to 20; after the answer.",
            rich_help_panel="Logprobs",
        ),
    ] = None,
    prompt_logprobs: Annotated[
        int | None,
        typer.Option(help="The same of the prompt's tokens.", rich_help_panel="Logprobs"),
    ] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Timings to stderr.")] = False,
    as_json: AsJson = False,
) -> None:
    """Continue a text and print the answer while it is written.

    Examples:

      tandem generate "Once upon a time" --max-tokens 64

      cat page.txt | tandem generate - --temperature 0 --stats

      tandem generate "A list:" --min-p 0.05 --repetition-penalty 1.1 --seed 7

      tandem generate "Dear" --stop "###" --min-tokens 20 --logit-bias 42:-100

      tandem generate "2 + 2 =" -m 1 --logprobs 5 --prompt-logprobs 0 --json

      tandem generate --file page.txt --json | jq -j 'select(.event=="delta").text'
    """
    text = read_prompt(prompt, file)
    options = generation.as_options()
    options |= {
        "request_id": request_id,
        "logprobs": logprobs,
        "prompt_logprobs": prompt_logprobs,
    }
    if n is not None:
        options["n"] = n
    with connection.open() as client, client.stream(text, **options) as stream:
        if as_json:
            show_json(stream)
        elif n is not None and n > 1:
            show_each_answer(stream)
        else:
            show_text(stream, [])
        if not as_json:
            show_logprobs(stream.completion())
        if stats:
            show_stats(stream.completion())
