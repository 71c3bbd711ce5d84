"""The progress of loading as lines of the worker's log; the launcher of a cluster reads them there.

deploy/local/loading.py knows the event and its fields.
"""

from runtime.clock import Clock
from runtime.logging import get_logger

log = get_logger()

EVENT = "loading"
# Between two lines of one part.
_EVERY_S = 1.0


class LoadingLog:
    """See `LoadingProgress`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._began_at_s = clock.now()
        self._phase = ""
        self._percent: int | None = None
        self._told_at_s = self._began_at_s

    def phase(self, name: str) -> None:
        """A line at once."""
        self._phase, self._percent = name, None
        self._tell()

    def advanced(self, num_done: int, num_total: int) -> None:
        """A line now and then."""
        percent = 100 * num_done // max(1, num_total)
        is_due = self._clock.now() - self._told_at_s >= _EVERY_S
        if is_due and percent != self._percent:
            self._percent = percent
            self._tell()

    def _tell(self) -> None:
        self._told_at_s = self._clock.now()
        elapsed_s = round(self._told_at_s - self._began_at_s, 2)
        # No percentage is no field: the same form in every format of the log.
        done = {} if self._percent is None else {"percent": self._percent}
        log.info(EVENT, phase=self._phase, **done, elapsed_s=elapsed_s)
