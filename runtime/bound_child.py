"""Children that end with their parent, however it ends: also by SIGKILL."""

import os
import signal
import sys
import threading
from collections.abc import Sequence

# Runs between fork and exec, in an interpreter of its own: a preexec_fn may deadlock where there
# are threads. The parent may be gone before prctl asks for its death signal, hence the last check.
_EXEC_WITH_DEATH_SIGNAL = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, int(sys.argv[2]), 0, 0, 0)\n"
    "os.getppid() == int(sys.argv[1]) or sys.exit(1)\n"
    "os.execv(sys.argv[3], sys.argv[3:])\n"
)


def bound_to_this_process(
    command: Sequence[str], death_signal: signal.Signals = signal.SIGTERM
) -> tuple[str, ...]:
    """The command, wrapped so that it gets the signal when this process ends.

    On Linux only, and only from the main thread: the death signal belongs to the thread that
    starts the child, and no other lives as long as the process. Elsewhere the command as it is.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return tuple(command)
    wrapper = (sys.executable, "-I", "-S", "-c", _EXEC_WITH_DEATH_SIGNAL)
    return (*wrapper, str(os.getpid()), str(int(death_signal)), *command)
