"""Numbers and names in a trace: from the text of a table or the values of JSON, within bounds.

All raise FieldProblem, which names the field and what it may hold.
"""

import math
from collections.abc import Mapping
from typing import Any

from simulator.traces.errors import FieldMissing, FieldProblem

# Beyond any context that anybody serves; a larger number is a column misread.
MAX_TOKENS = 10_000_000
# 3,000 years: seconds since 1970 pass, milliseconds since 1970 given as seconds do not.
MAX_TIME_S = 1e11
MAX_NAME_CHARS = 200
MAX_ID = 2**63 - 1

_EXPECTED_TIME = f"seconds from 0 to {MAX_TIME_S:g}"
_EXPECTED_PROMPT = f"a whole number of tokens from 1 to {MAX_TOKENS}"
_EXPECTED_OUTPUT = f"a whole number of tokens from 0 to {MAX_TOKENS}"


def text_time_s(text: str, field: str) -> float:
    """Seconds, written in a table."""
    number = text_number(text, field, _EXPECTED_TIME)
    if not 0 <= number <= MAX_TIME_S:
        raise FieldProblem(field, text, _EXPECTED_TIME)
    return number


def text_number(text: str, field: str, expected: str) -> float:
    """Any finite number, written in a table."""
    try:
        # float() takes "1_0" and digits of other scripts as well.
        number = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise FieldProblem(field, text, expected)
    return number


def text_prompt_tokens(text: str, field: str) -> int:
    """Tokens of a prompt, written in a table."""
    number = _text_tokens(text)
    if not 1 <= number <= MAX_TOKENS:
        raise FieldProblem(field, text, _EXPECTED_PROMPT)
    return number


def text_output_tokens(text: str, field: str) -> int:
    """Tokens of an answer, written in a table; 0 is allowed here and raised to 1 later."""
    number = _text_tokens(text)
    if not 0 <= number <= MAX_TOKENS:
        raise FieldProblem(field, text, _EXPECTED_OUTPUT)
    return number


def _text_tokens(text: str) -> int:
    """-1 if it is no whole number, or one far too large."""
    # The length first: int() of a million digits takes minutes, or refuses in words of its own.
    if len(text) > 12 or not (text.isascii() and text.isdecimal()):
        return -1
    return int(text)


def text_name(text: str, field: str) -> str:
    """The name of a tenant or session, written in a table; may be empty."""
    if len(text) > MAX_NAME_CHARS:
        raise FieldProblem(field, text, f"at most {MAX_NAME_CHARS} characters")
    return text


def json_number(fields: Mapping[str, Any], field: str, max_value: float) -> float:
    """A JSON number from 0 to max_value."""
    value = _present(fields, field)
    # A bool is an int to Python, and NaN compares false with everything.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= max_value:
        raise FieldProblem(field, value, f"a number from 0 to {max_value:g}")
    return float(value)


def json_prompt_tokens(fields: Mapping[str, Any], field: str) -> int:
    """Tokens of a prompt."""
    return checked_whole(_present(fields, field), field, 1, MAX_TOKENS)


def json_output_tokens(fields: Mapping[str, Any], field: str) -> int:
    """Tokens of an answer; 0 is allowed here and raised to 1 later."""
    return checked_whole(_present(fields, field), field, 0, MAX_TOKENS)


def json_id(fields: Mapping[str, Any], field: str) -> int:
    """The number of a conversation or turn."""
    return checked_whole(_present(fields, field), field, 0, MAX_ID)


def json_list(fields: Mapping[str, Any], field: str, max_items: int) -> list[Any]:
    """A list of anything."""
    value = _present(fields, field)
    if not isinstance(value, list):
        raise FieldProblem(field, value, "a list")
    if len(value) > max_items:
        problem = f"at most {max_items} items, as many as the prompt has room for"
        raise FieldProblem(field, f"{len(value)} items", problem)
    return value


def checked_whole(value: object, field: str, low: int, high: int) -> int:
    """The JSON value, if it is a whole number in the range."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise FieldProblem(field, value, f"a whole number from {low} to {high}")
    return value


def _present(fields: Mapping[str, Any], field: str) -> Any:
    try:
        return fields[field]
    except KeyError:
        raise FieldMissing(field) from None
