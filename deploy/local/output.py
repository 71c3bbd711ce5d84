"""Where lines go: results to stdout, progress and errors to stderr, each at once."""

import sys


def print_line(line: str) -> None:
    """A result."""
    print(line, flush=True)


def progress(line: str) -> None:
    """What happens at the moment."""
    print(f"tandem: {line}", file=sys.stderr, flush=True)


def say_error(message: str) -> None:
    """Why it did not work, always one line."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr, flush=True)
