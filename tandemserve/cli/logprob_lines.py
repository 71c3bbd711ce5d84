"""Logprobs for people: a line for each token of an answer or a prompt. Pure."""

from collections.abc import Iterator

from tandemserve.results import Choice, Completion, TokenLogprobs, TopLogprob


def logprob_lines(completion: Completion) -> Iterator[str]:
    """First the prompt's, then each answer's; nothing for what was not asked for."""
    if completion.prompt_logprobs:
        yield "logprobs of the prompt"
        for position, entry in enumerate(completion.prompt_logprobs):
            # Nothing comes before the first token, so it has none.
            if entry is not None:
                yield _line(position, "", entry)
    for choice in completion.choices:
        if choice.logprobs:
            yield _heading(completion, choice)
            tokens = zip(choice.token_ids, choice.logprobs, strict=False)
            for position, (token_id, entry) in enumerate(tokens):
                yield _line(position, f"{token_id:>7}  ", entry, _text_of(token_id, entry))


def _heading(completion: Completion, choice: Choice) -> str:
    which = "the answer" if len(completion.choices) == 1 else f"answer {choice.index}"
    return f"logprobs of {which}"


def _line(position: int, token: str, entry: TokenLogprobs, text: str = "") -> str:
    alternatives = "  ".join(_alternative(top) for top in entry.top)
    between = "  | " if alternatives else ""
    return f"{position:>5}  {token}{entry.logprob:>8.3f}  {text}{between}{alternatives}".rstrip()


def _alternative(top: TopLogprob) -> str:
    return f"{top.text!r} {top.logprob:.3f}"


def _text_of(token_id: int, entry: TokenLogprobs) -> str:
    """Known where the token is one of the likeliest; escaped, so that it stays on its line."""
    return next((repr(top.text) for top in entry.top if top.token_id == token_id), "")
