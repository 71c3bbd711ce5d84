"""Where lines go: results to stdout, progress and errors to stderr, each at once."""

import contextlib
import sys

from deploy.local.loading import StartNews


def print_line(line: str) -> None:
    """A result. Raises: BrokenPipeError when its reader has gone."""
    print(line, flush=True)


def progress(line: str) -> None:
    """What happens at the moment."""
    _note(f"tandem: {line}")


def say_news_as_json(news: StartNews) -> None:
    """How far the start has come, a JSON object in a line."""
    _note(news.as_json())


def say_interrupted() -> None:
    """Somebody does not wait for what was begun."""
    progress("interrupted; ending all processes, press Ctrl-C again to kill them")


def say_error(message: str) -> None:
    """Why it did not work, always one line."""
    _note(f"error: {' '.join(message.split())}")


def _note(line: str) -> None:
    # The terminal may have been closed; the processes still have to be ended in order.
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)
