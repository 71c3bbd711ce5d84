"""`--watch`: the same view again and again, in place on a terminal."""

import sys
import time
from collections.abc import Callable
from typing import Annotated

import typer

Watch = Annotated[
    float | None,
    typer.Option(min=0.1, max=3600.0, help="Show it again every so many seconds.", metavar="SECS"),
]
_CLEAR = "\x1b[H\x1b[2J"


def show_until_interrupted(
    show: Callable[[], None], every_s: float | None, sleep: Callable[[float], object] = time.sleep
) -> None:
    """Once without an interval, else until Ctrl-C."""
    if every_s is None:
        show()
        return
    while True:
        if sys.stdout.isatty():
            print(_CLEAR, end="")
        show()
        sys.stdout.flush()
        sleep(every_s)
