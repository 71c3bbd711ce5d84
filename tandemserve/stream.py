"""The events of one generation, for synchronous code. The work is done in `pump.py`."""

import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from tandemserve.connection import Connection
from tandemserve.errors import TandemError
from tandemserve.generation import Generation
from tandemserve.pump import Pump
from tandemserve.results import Accepted, Completion, Event

__all__ = ["Stream"]


class Stream(Iterator[Event]):
    """Yields each Delta once, then one Finished for each answer.

    The request is on its way when this exists. Leaving the `with` block, Ctrl-C or dropping the
    stream cancels what is still running. One thread reads; any thread may cancel.
    """

    def __init__(self, connection: Connection, generation: Generation) -> None:
        connection.raise_if_closed()
        self._generation = generation
        self._is_ended = False
        self._failure: TandemError | None = None
        self._pump = Pump(connection, generation)

    @property
    def request_id(self) -> str:
        """Known from the start; repeating the request with it attaches to this one."""
        return self._generation.request_id

    @property
    def accepted(self) -> Accepted | None:
        """Model, prompt length and seed; None until the server has answered."""
        return self._generation.accepted

    def completion(self) -> Completion:
        """Read to the end and return all answers whole. Raises: TandemError."""
        for _ in self:
            pass
        return self._generation.completion()

    def cancel(self) -> None:
        """Stop the request; the reader gets RequestCancelled. Harmless when it has ended."""
        if not self._is_ended and self._failure is None:
            self._failure = self._generation.cancelled()
        self._pump.cancel()

    def close(self) -> None:
        """Stop the request, as `cancel`; `contextlib.closing` and others know this name."""
        self.cancel()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        if self._is_ended:
            raise StopIteration
        if self._failure is not None:
            raise self._failure
        try:
            event = self._pump.take()
        except BaseException as error:  # Ctrl-C included: nobody will read on
            if isinstance(error, TandemError):
                self._failure = error
            self.cancel()
            raise
        if event is None:
            self._is_ended = True
            raise StopIteration
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        # The thread would go on without a reader. At exit it is stopped already, perhaps with a
        # lock in its hands. There is no pump where the constructor failed.
        pump = getattr(self, "_pump", None)
        if pump is not None and not sys.is_finalizing():
            pump.cancel()
