"""Shows a stream: text as it arrives, or one JSON event per line."""

import sys
from dataclasses import asdict, fields
from typing import TYPE_CHECKING

from tandemserve.cli.logprob_lines import logprob_lines
from tandemserve.cli.output import note, print_json, print_table
from tandemserve.results import (
    Completion,
    Delta,
    Event,
    Finished,
    PromptLogprobs,
    Timings,
    Usage,
)

if TYPE_CHECKING:
    from tandemserve.stream import Stream

_EVENT_NAMES: dict[type[Event], str] = {
    Delta: "delta",
    Finished: "finished",
    PromptLogprobs: "prompt_logprobs",
}


def show_text(stream: "Stream", pieces: list[str]) -> None:
    """Write a single answer to stdout as it arrives; `pieces` keeps what was written."""
    try:
        for event in stream:
            if isinstance(event, Delta):
                pieces.append(event.text)
                sys.stdout.write(event.text)
                sys.stdout.flush()
    finally:
        # Whatever comes next, a shell prompt or an error, begins on a line of its own.
        if pieces and not pieces[-1].endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()


def show_each_answer(stream: "Stream") -> None:
    """Write several answers one after the other, each when it is complete."""
    texts: dict[int, list[str]] = {}
    for event in stream:
        if isinstance(event, Delta):
            texts.setdefault(event.index, []).append(event.text)
        elif isinstance(event, Finished):
            print(
                f"--- answer {event.index} ---\n{''.join(texts.get(event.index, []))}", flush=True
            )


def show_json(stream: "Stream") -> None:
    """Write one line per event: started, accepted, prompt_logprobs if asked for, delta, finished.

    The line `accepted` has what the server settled, the seed among it, and comes with the first
    event.
    """
    print_json({"event": "started", "request_id": stream.request_id})
    is_accepted = False
    for event in stream:
        if not is_accepted and stream.accepted is not None:
            is_accepted = True
            print_json({"event": "accepted"} | asdict(stream.accepted))
        print_json({"event": _EVENT_NAMES[type(event)]} | asdict(event))


def show_logprobs(completion: Completion) -> None:
    """Write what was asked for of answer and prompt to stdout, a line for each token."""
    for line in logprob_lines(completion):
        print(line)


def show_stats(completion: Completion) -> None:
    """Write usage and timings to stderr, one column per answer."""
    rows: list[list[object]] = [
        [field.name, *(getattr(choice.usage, field.name) for choice in completion.choices)]
        for field in fields(Usage)
    ]
    rows += [
        [field.name, *(getattr(choice.timings, field.name) for choice in completion.choices)]
        for field in fields(Timings)
    ]
    answers = [f"answer {choice.index}" for choice in completion.choices]
    rows.insert(0, ["finish_reason", *(str(c.finish_reason) for c in completion.choices)])
    note(f"request {completion.request_id}, seed {completion.seed}")
    print_table("", ["", *answers], rows, stderr=True)
