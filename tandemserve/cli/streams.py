"""Standard streams that were closed before we began, as by `>&-`."""

import os
import sys

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_closed_streams() -> None:
    """Have them read nothing and drop what is written.

    Otherwise the next file that is opened gets their number, and with it what libraries and
    children write to it.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        if getattr(sys, name) is not None:
            continue
        file = os.open(os.devnull, os.O_RDWR)
        if file == number:
            os.set_inheritable(file, True)
        elif _is_free(number):
            os.dup2(file, number)
            os.close(file)
            file = number
        setattr(sys, name, os.fdopen(file, mode))


def _is_free(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return True
    return False
