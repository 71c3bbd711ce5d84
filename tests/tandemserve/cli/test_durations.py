"""Times for people."""

import pytest

from tandemserve.cli.durations import brief


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0ms"),
        (0.0124, "12ms"),
        (0.9994, "999ms"),
        (0.9996, "1.0s"),
        (59.94, "59.9s"),
        (99.94, "99.9s"),
        (99.96, "1m40s"),
        (3599.4, "59m59s"),
        (3599.6, "1h00m"),
        (86_399.6, "1d00h"),
        (7 * 86_400 + 3600, "7d01h"),
        (-1.5, "-1.5s"),
    ],
)
def test_as_many_digits_as_matter(seconds: float, shown: str) -> None:
    assert brief(seconds) == shown
