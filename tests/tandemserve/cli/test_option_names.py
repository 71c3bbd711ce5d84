"""Errors of the SDK and the router, in the words of the command line."""

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from tandemserve.cli import option_names
from tandemserve.cli.exit_codes import ExitCode, error_line, exit_code_of
from tandemserve.cli.main import app
from tandemserve.errors import CanNeverFit, DeadlineExceeded, InvalidRequest, UnknownModel


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("num_logprobs: 30; ask for at most 20", "--logprobs: 30; ask for at most 20"),
        ("n: 99 answers; ask for at most 16", "-n: 99 answers; ask for at most 16"),
        (
            "min_tokens: 9 is above max_tokens (5); raise that or lower this",
            "--min-tokens: 9 is above --max-tokens (5); raise that or lower this",
        ),
        ("no answer in 3 s; raise timeout_s", "no answer in 3 s; raise --timeout"),
        ("the seed of a model: n", "the seed of a model: n"),
        ("worker max_tokens-3.x failed", "worker max_tokens-3.x failed"),
    ],
)
def test_fields_become_the_options_that_set_them(message: str, told: str) -> None:
    assert option_names.in_options(message) == told


def test_every_option_named_is_one_of_generate() -> None:
    command = get_command(app).commands["generate"]  # type: ignore[attr-defined]
    known = {name for parameter in command.params for name in parameter.opts}
    assert set(option_names.OPTION_BY_FIELD.values()) <= known


def test_an_option_with_an_impossible_value_is_wrong_usage() -> None:
    for message in ("top_p: 2 is out of range; use 0 to 1", "max_tokens: -5 is outside 1 to 9"):
        assert exit_code_of(InvalidRequest(message), is_generation=True) == ExitCode.USAGE
    for error in (
        InvalidRequest("text: the prompt is empty; send at least one character"),
        UnknownModel("model: 'x' is not served"),
        CanNeverFit("too big; lower max_tokens"),
    ):
        assert exit_code_of(error, is_generation=True) == ExitCode.FAILED
    # Operators' ids are no request ids of theirs.
    assert exit_code_of(InvalidRequest("request_id: 'a' begins two")) == ExitCode.FAILED


@pytest.mark.parametrize("command", [["generate", "x"], ["admin", "requests"]])
def test_an_unknown_choice_is_told_without_the_words_of_a_library(command: list[str]) -> None:
    runner = CliRunner(env={"COLUMNS": "200"})
    result = runner.invoke(app, [*command, "--class", "urgent"])
    assert result.exit_code == 2
    assert "Invalid value for '--class': 'urgent' is not one of" in result.stderr


def test_other_commands_know_only_the_timeout() -> None:
    error = DeadlineExceeded("raise timeout_s, or ask for fewer tokens")
    assert "raise --timeout, or" in error_line(error)
    assert "request_id: 'a'" in error_line(InvalidRequest("request_id: 'a' begins two"))
